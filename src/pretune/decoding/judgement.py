"""What a model thinks of a continuation that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of one continuation."""

    logprobs: tuple[float, ...]  # natural, of each token given all before it
    greedy: bool  # every token is the most probable one

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation."""
        return sum(self.logprobs)
