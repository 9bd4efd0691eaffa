"""Beam search: the most probable continuation, looked for with a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from pretune.data.arrays import Array


@dataclass(frozen=True)
class Candidates:
    """The tokens with which hypotheses may go on best, for several searches at once.

    Attributes:
        scores: `[R, C]` of each of the best tokens of R hypotheses, best first.
        tokens: `[R, C]` which they are.
        logprobs: `[R, C]` the log-probability that the model gave them.
    """

    scores: Array
    tokens: Array
    logprobs: Array

    @classmethod
    def of(cls, scores: Tensor, logprobs: Tensor, count: int) -> Candidates:
        """The `count` best.

        Args:
            scores: `[R, V]` log-probabilities after penalties: what is maximised.
            logprobs: `[R, V]` the model's own.
            count: C; V where that is less.
        """
        best = scores.topk(min(count, scores.shape[1]))
        own = best.values if logprobs is scores else logprobs.gather(1, best.indices)
        return cls(*(part.cpu().numpy() for part in (best.values, best.indices, own)))

    def rows(self, start: int, end: int) -> Candidates:
        """Those of some of the hypotheses."""
        return Candidates(self.scores[start:end], self.tokens[start:end], self.logprobs[start:end])


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

    Attributes:
        candidates: how many it looks at in each step.
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
        self.candidates = max(2, 1 + stop_count) * beams
        self._ending = ending

    def advance(self, best: Candidates) -> list[int]:
        """Take in what the model says of each live hypothesis.

        Args:
            best: at least `candidates` of each of them, or all that there are.

        Returns:
            for each hypothesis that is live now, which of the former ones it continues.
        """
        before = np.array([h.score for h in self.live], dtype=best.scores.dtype)
        totals = (best.scores + before[:, None]).ravel()
        order = np.argsort(-totals, kind="stable")[: self.candidates]
        columns = (
            totals[order].tolist(),
            (order // best.scores.shape[1]).tolist(),
            best.tokens.ravel()[order].tolist(),
            best.logprobs.ravel()[order].tolist(),
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
