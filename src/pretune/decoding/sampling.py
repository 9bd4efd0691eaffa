"""Choosing the next token: penalties, filters and the draw, on `[B, V]` scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.errors import PretuneError

Array = NDArray[np.int64]

NEVER = float("-inf")
#: Tokens that `length_ratio` leaves to the shortest prompt.
SPARE = 10
#: Number of best tokens in which to look for a nucleus before sorting the whole vocabulary.
NUCLEUS_CANDIDATES = 1024
#: Lower temperatures are raised to this: logits would overflow, and it is greedy already.
COLDEST = 1e-6


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
    "seed": (int, 0, 2**64 - 1, False),
}


def penalize(scores: Tensor, histories: Sequence[Sequence[int]], decoding: Decoding) -> Tensor:
    """Apply the repetition penalty, and forbid repeated n-grams and banned tokens.

    `scores`, `[B, V]`, are logits, or log-probabilities in a search; `histories` are the B
    sequences up to now, including prompts.
    """
    if decoding.repetition_penalty == 1 and not (decoding.no_repeat_ngram or decoding.never):
        return scores
    scores = scores.clone()
    scores[:, list(decoding.never)] = NEVER
    for row, history in zip(scores, histories, strict=True):
        seen = np.asarray(history, dtype=np.int64)
        if decoding.repetition_penalty != 1:
            index = torch.from_numpy(np.unique(seen)).to(scores.device)
            occurred, penalty = row[index], decoding.repetition_penalty
            row[index] = torch.where(occurred < 0, occurred * penalty, occurred / penalty)
        if decoding.no_repeat_ngram:
            banned = repeating(seen, decoding.no_repeat_ngram)
            row[torch.from_numpy(banned).to(scores.device)] = NEVER
    return scores


def repeating(history: Array, size: int) -> Array:
    """The tokens that would repeat an n-gram of `size` tokens."""
    if len(history) < size:
        return np.empty(0, dtype=np.int64)
    # N-grams whose first n - 1 tokens are the last ones of the history.
    ngrams = np.lib.stride_tricks.sliding_window_view(history, size)
    start = history[len(history) - size + 1 :]
    repeats: Array = ngrams[(ngrams[:, :-1] == start).all(1), -1]
    return repeats


def narrow(logits: Tensor, decoding: Decoding) -> Tensor:
    """Divide logits `[B, V]` by the temperature, and set those that a filter forbids to -inf.

    Tokens as probable as the last one that passes a filter pass as well.
    """
    scores = logits
    if decoding.temperature not in (0, 1):
        scores = logits / max(decoding.temperature, COLDEST)
    if 0 < decoding.top_k < scores.shape[-1]:
        scores = _at_least(scores, scores.topk(decoding.top_k).values[:, -1:])
    if decoding.top_p < 1:
        scores = _nucleus(scores, decoding.top_p)
    if decoding.min_p > 0:
        scores = _at_least(scores, scores.amax(-1, keepdim=True) + math.log(decoding.min_p))
    if decoding.typical_p < 1:
        scores = _typical(scores, decoding.typical_p)
    return scores


def _at_least(scores: Tensor, threshold: Tensor) -> Tensor:
    return scores.masked_fill(scores < threshold, NEVER)


def _nucleus(scores: Tensor, p: float) -> Tensor:
    """A token passes if the tokens more probable than it have less than `p` together."""
    total = scores.logsumexp(-1, keepdim=True)
    best = scores.topk(min(NUCLEUS_CANDIDATES, scores.shape[-1])).values
    mass = (best - total).exp().cumsum(-1)
    # A flat distribution: the nucleus is larger than the candidates.
    if best.shape != scores.shape and bool((mass[:, -1] < p).any()):
        best = scores.sort(descending=True).values
        mass = (best - total).exp().cumsum(-1)
    passing = (mass < p).sum(-1, keepdim=True)  # index of the token that reaches p
    return _at_least(scores, best.gather(-1, passing.clamp(max=best.shape[-1] - 1)))


def _typical(scores: Tensor, p: float) -> Tensor:
    # Tokens by how far their information, -log p, is from its mean, the entropy.
    logs = scores.log_softmax(-1)
    chances = logs.exp()
    entropy = -(logs * chances).nansum(-1, keepdim=True)
    distance = (logs + entropy).abs()  # | information - entropy |
    ascending, order = distance.sort()
    mass = chances.gather(-1, order).cumsum(-1)
    passing = (mass < p).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    return scores.masked_fill(distance > ascending.gather(-1, passing), NEVER)


def draw(scores: Tensor, uniform: Sequence[float]) -> Tensor:
    """Draw a token for each row of logits `[B, V]` by inverting the distribution function.

    `uniform` has a number from [0, 1) for each row, from a generator of its own.
    """
    # In float64, rounding in a sum over 50,000 tokens does not move the borders between them.
    cumulative = scores.softmax(-1).double().cumsum(-1)
    total = cumulative[:, -1:]
    where = torch.tensor(uniform, dtype=torch.float64, device=scores.device)[:, None] * total
    where = torch.minimum(where, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, where, right=True).squeeze(1)


def generator(seed: int, sample: int, salt: int = 0) -> np.random.Generator:
    """The random generator of one sample; another salt gives an independent one."""
    more = [salt] if salt else []
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, sample, *more])))
