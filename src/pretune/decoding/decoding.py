"""How text is written: every setting, checked. Nothing here computes anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pretune.errors import PretuneError

#: Tokens that `length_ratio` leaves to the shortest prompt.
SPARE = 10


@dataclass(frozen=True)
class Decoding:
    """How text is generated. Filters apply in the order of these attributes.

    Attributes:
        max_new_tokens: the largest number of tokens in a continuation.
        length_ratio: a further limit: this many tokens for each token of the prompt, plus `SPARE`;
            0: off.
        repetition_penalty: divides positive logits of tokens that occurred, and multiplies negative
            ones (Keskar et al. 2019, section 4.1); 1: off.
        no_repeat_ngram: n: no n-gram occurs twice (Paulus et al. 2018, section 2.5); 0: off.
        temperature: divides the logits; 0: always the most probable token (greedy).
        top_k: keep the k most probable tokens (Fan et al. 2018, section 5.4); 0: off.
        top_p: keep the most probable tokens that together have this probability (Holtzman et al.
            2020, section 3.1); 1: off.
        min_p: keep tokens whose probability is at least this fraction of the largest one (Nguyen et
            al. 2024, section 3); 0: off.
        typical_p: keep the tokens whose information is closest to the entropy and that together
            have this probability (Meister et al. 2023, section 3); 1: off.
        beams: hypotheses that a beam search keeps; 1: no search. A search draws nothing.
        length_penalty: a search compares sum(log p) / length**length_penalty.
        early_stopping: stop a search as soon as it has as many finished texts as beams.
        samples: continuations of each prompt; of a search, its best.
        stop: texts that end a continuation and are not part of it.
        stop_tokens: token ids that end a continuation; None: the model's own.
        never: token ids that are never written.
        min_new_tokens: before so many tokens nothing ends a continuation.
        forced_end: the token that is written where the last one allowed would be; None: any.
        renormalize: a search scores the tokens that are left by their share of what is left, not
            of all (transformers' `renormalize_logits`).
        seed: seed of the draws. Sample i of a prompt has its own random generator, made from the
            seed and i, so that it does not depend on what is generated beside it.

    Raises:
        PretuneError: a value makes no sense, by itself or with another; names it.
    """

    max_new_tokens: int = 128
    length_ratio: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    typical_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    samples: int = 1
    stop: str | Sequence[str] = ()
    stop_tokens: tuple[int, ...] | None = None
    never: tuple[int, ...] = ()
    min_new_tokens: int = 0
    forced_end: int | None = None
    renormalize: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "never", tuple(self.never))
        for name, (kind, low, high, above_low) in _RANGES.items():
            self._check(name, kind, low, high, above_low)
        if not all(self.stop):
            raise PretuneError("stop: an empty text occurs everywhere", "Leave it out.")
        if self.beams > 1:
            self._check_search()
        elif self.temperature == 0 and self.samples > 1:
            raise PretuneError(
                f"samples is {self.samples}, but with temperature 0 all would be the same",
                "Use a temperature above 0, or beams.",
            )

    def _check(self, name: str, kind: type, low: float, high: float, above: bool) -> None:
        value = getattr(self, name)
        kinds = (int, float) if kind is float else (int,)
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if not (good and low <= value <= high and not (above and value == low)):
            number = "number" if kind is float else "whole number"
            start = f"above {low:g}" if above else f"from {low:g}"
            bounds = start if high == math.inf else f"{start} to {high:g}"
            raise PretuneError(f"{name} must be a {number} {bounds}, not {value!r}")

    def _check_search(self) -> None:
        default = {item.name: item.default for item in fields(self)}
        off = {"temperature": 0, "top_p": 1}
        for name in ("temperature", "top_k", "top_p", "min_p", "typical_p"):
            if getattr(self, name) not in (default[name], off.get(name)):
                raise PretuneError(
                    f"{name} is about drawing, but a search (beams={self.beams}) draws nothing",
                    f"Leave out {name} or beams.",
                )
        if self.samples > self.beams:
            raise PretuneError(
                f"samples is {self.samples}, but a search with {self.beams} beams has "
                f"{self.beams} results",
                f"Use beams={self.samples}, or fewer samples.",
            )

    def limit(self, prompt: Sequence[int]) -> int:
        """The largest number of tokens in a continuation of a prompt."""
        if self.length_ratio == 0:
            return self.max_new_tokens
        return min(self.max_new_tokens, round(self.length_ratio * len(prompt)) + SPARE)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always chosen."""
        return self.temperature == 0

    @property
    def choosing(self) -> Decoding:
        """How a token is chosen: the same for texts whose next tokens can be chosen together."""
        off: dict[str, Any] = {"length_ratio": 0.0, "stop": (), "stop_tokens": None, "seed": 0}
        return replace(self, max_new_tokens=1, samples=1, **off)


#: For each option: its type, the lower bound, the upper bound, and whether the lower is excluded.
_RANGES: dict[str, tuple[type, float, float, bool]] = {
    "max_new_tokens": (int, 1, 1_000_000, False),
    "length_ratio": (float, 0, 1000, False),
    "repetition_penalty": (float, 0, 1000, True),
    "no_repeat_ngram": (int, 0, 1000, False),
    "temperature": (float, 0, 1000, False),
    "top_k": (int, 0, math.inf, False),
    "top_p": (float, 0, 1, True),
    "min_p": (float, 0, 1, False),
    "typical_p": (float, 0, 1, True),
    "beams": (int, 1, 1000, False),
    "length_penalty": (float, -10, 10, False),
    "samples": (int, 1, 10_000, False),
    "min_new_tokens": (int, 0, 1_000_000, False),
    "seed": (int, 0, 2**64 - 1, False),
}
