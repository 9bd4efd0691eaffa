"""Beam search for the most probable continuation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from pretune.data.arrays import Array
from pretune.errors import NotFiniteError


@dataclass(frozen=True)
class Candidates:
    """The best next tokens of R hypotheses, which may belong to several searches."""

    scores: Array  # `[R, C]`, best first
    tokens: Array  # `[R, C]` token ids
    logprobs: Array  # `[R, C]` log-probabilities of the model

    @classmethod
    def of(cls, scores: Tensor, logprobs: Tensor, count: int) -> Candidates:
        """Pick the C (`count`) best tokens of each hypothesis.

        `scores`, `[R, V]`, are log-probabilities after penalties, which the search maximises;
        `logprobs`, `[R, V]`, are the model's own.
        """
        best = scores.topk(min(count, scores.shape[1]))
        own = best.values if logprobs is scores else logprobs.gather(1, best.indices)
        return cls(*(part.cpu().numpy() for part in (best.values, best.indices, own)))

    def rows(self, start: int, end: int) -> Candidates:
        """Pick a range of hypotheses."""
        return Candidates(self.scores[start:end], self.tokens[start:end], self.logprobs[start:end])


@dataclass(frozen=True)
class Hypothesis:
    """A continuation in a search."""

    tokens: tuple[int, ...] = ()  # its tokens, including a stop token
    logprobs: tuple[float, ...] = ()  # the model's log-probability of each token
    #: The sum of log-probabilities; once finished, divided by length**length_penalty.
    score: float = 0.0
    #: Why it ended: `stop_token`, `stop_text`, `length` or `exhausted`; None: it is live.
    stopped: str | None = None


class BeamSearch:
    """The search for one prompt, with the scores and the stopping rule of transformers.

    Args:
        beams: number of hypotheses to keep.
        length_penalty: finished hypotheses compare by score / length**length_penalty.
        early_stopping: stop as soon as `beams` hypotheses have finished. Otherwise, stop when no
            live hypothesis can beat the worst finished one at its present length.
        stops: tokens that end a hypothesis.
        ending: says why a hypothesis with these tokens ends; None: it does not.
        limit: most tokens of a hypothesis.
    """

    def __init__(
        self,
        beams: int,
        length_penalty: float,
        early_stopping: bool,
        stops: Collection[int],
        ending: Callable[[Sequence[int]], str | None],
        limit: int = 0,
    ) -> None:
        self.live = [Hypothesis()]
        self.finished: list[Hypothesis] = []
        self.done = False
        self._beams, self._ending = beams, ending
        self._stops, self._limit = stops, limit
        self._length_penalty, self._early_stopping = length_penalty, early_stopping
        # Enough to fill the beams even if the best tokens of every beam are all stop tokens.
        self.candidates = max(2, 1 + len(stops)) * beams  # tokens to look at in each step

    @property
    def places(self) -> list[tuple[int, int, Collection[int]]]:
        """How long each live hypothesis is, how long it may be, and what ends it."""
        return [(len(own.tokens), self._limit, self._stops) for own in self.live]

    def advance(self, best: Candidates) -> list[int]:
        """Extend the live hypotheses by one token.

        `best` has at least `candidates` tokens of each, or the whole vocabulary. Returns, for each
        hypothesis that is now live, the row of the one it continues.
        """
        if np.isnan(best.logprobs).any():
            raise NotFiniteError
        # Rank all continuations of all hypotheses together.
        before = np.array([h.score for h in self.live], dtype=best.scores.dtype)
        totals = (best.scores + before[:, None]).ravel()
        order = np.argsort(-totals, kind="stable")[: self.candidates]
        columns = (
            totals[order].tolist(),
            (order // best.scores.shape[1]).tolist(),
            best.tokens.ravel()[order].tolist(),
            best.logprobs.ravel()[order].tolist(),
        )
        # A continuation that ends counts only if it is among the best `beams` of this step.
        going: list[tuple[int, Hypothesis]] = []
        for rank, (total, origin, token, logprob) in enumerate(zip(*columns, strict=True)):
            if total == float("-inf"):
                break
            parent = self.live[origin]
            tokens_now = (*parent.tokens, token)
            why = self._ending(tokens_now)
            longer = Hypothesis(tokens_now, (*parent.logprobs, logprob), total, why)
            if why is None:
                going.append((origin, longer))
            elif rank < self._beams:
                self._finish(longer)
        going = going[: self._beams]
        if not going and not self.finished:  # every token is forbidden
            for hypothesis in self.live:
                self._finish(replace(hypothesis, stopped="exhausted"))
        self.live = [hypothesis for _, hypothesis in going]
        self._conclude()
        return [origin for origin, _ in going]

    def _finish(self, hypothesis: Hypothesis) -> None:
        score = hypothesis.score / max(1, len(hypothesis.tokens)) ** self._length_penalty
        self.finished.append(replace(hypothesis, score=score))

    def _conclude(self) -> None:
        """Keep the best finished hypotheses, and decide whether a live one may still beat them."""
        self.finished.sort(key=lambda h: h.score, reverse=True)
        del self.finished[self._beams :]
        if not self.live:
            self.done = True
        elif len(self.finished) == self._beams:
            front = self.live[0]
            attainable = front.score / len(front.tokens) ** self._length_penalty
            self.done = self._early_stopping or attainable <= self.finished[-1].score
