"""Beam search: the most probable continuation, looked for with a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A continuation in a search.

    Attributes:
        tokens: its tokens, a stop token included.
        logprobs: the model's log-probability of each.
        score: sum of log-probabilities; of a finished one, over length**length_penalty.
        stopped: why it ended: `stop_token`, `stop_text`, `length` or `exhausted`; None: it has
            not.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0
    stopped: str | None = None


class BeamSearch:
    """The search for one prompt, with the scores and the end as transformers defines them.

    Args:
        beams: hypotheses to keep.
        length_penalty: finished ones are compared by score / length**length_penalty.
        early_stopping: end as soon as `beams` have finished; else when no live one can be better
            than the worst of them at its present length.
        stop_count: how many tokens are stop tokens.
        ending: why a continuation of these tokens ends, or None.
    """

    def __init__(
        self,
        beams: int,
        length_penalty: float,
        early_stopping: bool,
        stop_count: int,
        ending: Callable[[Sequence[int]], str | None],
    ) -> None:
        self.live = [Hypothesis()]
        self.finished: list[Hypothesis] = []
        self.done = False
        self._beams = beams
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        # So many that enough go on, even if each beam's best are all stop tokens.
        self._candidates = max(2, 1 + stop_count) * beams
        self._ending = ending

    def advance(self, scores: Tensor, logprobs: Tensor) -> list[int]:
        """Take in what the model says of each live hypothesis.

        Args:
            scores: `[live, V]` log-probabilities after penalties: what is maximised.
            logprobs: `[live, V]` the model's own.

        Returns:
            for each hypothesis that is live now, which of the former ones it continues.
        """
        totals = scores + scores.new_tensor([h.score for h in self.live])[:, None]
        best = totals.flatten().topk(min(self._candidates, totals.numel()))
        origins = best.indices // scores.shape[1]
        tokens = best.indices % scores.shape[1]
        columns = (
            best.values.tolist(),
            origins.tolist(),
            tokens.tolist(),
            logprobs[origins, tokens].tolist(),
        )
        going: list[tuple[int, Hypothesis]] = []
        for rank, (total, origin, token, logprob) in enumerate(zip(*columns, strict=True)):
            if total == float("-inf"):
                break
            parent = self.live[origin]
            tokens_now = (*parent.tokens, token)
            why = self._ending(tokens_now)
            found = Hypothesis(tokens_now, (*parent.logprobs, logprob), total, why)
            if why is None:
                going.append((origin, found))
            elif rank < self._beams:
                self._finish(found)
        going = going[: self._beams]
        if not going and not self.finished:  # every token is forbidden
            for hypothesis in self.live:
                self._finish(replace(hypothesis, stopped="exhausted"))
        self.live = [hypothesis for _, hypothesis in going]
        self._conclude()
        return [origin for origin, _ in going]

    def _finish(self, found: Hypothesis) -> None:
        score = found.score / max(1, len(found.tokens)) ** self._length_penalty
        self.finished.append(replace(found, score=score))

    def _conclude(self) -> None:
        """Keep the best of the finished; see whether a live one may still be better."""
        self.finished.sort(key=lambda h: h.score, reverse=True)
        del self.finished[self._beams :]
        if not self.live:
            self.done = True
        elif len(self.finished) == self._beams:
            front = self.live[0]
            hoped = front.score / len(front.tokens) ** self._length_penalty
            self.done = self._early_stopping or hoped <= self.finished[-1].score
