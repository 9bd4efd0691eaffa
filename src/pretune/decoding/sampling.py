"""Choosing the next token: penalties, filters and the draw, on `[B, V]` scores."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretune.decoding.decoding import Decoding

Array = NDArray[np.int64]

NEVER = float("-inf")
#: Number of best tokens in which to look for a nucleus before sorting the whole vocabulary.
NUCLEUS_CANDIDATES = 1024
#: Lower temperatures are raised to this: logits would overflow, and it is greedy already.
COLDEST = 1e-6


def penalize(scores: Tensor, histories: Sequence[Sequence[int]], decoding: Decoding) -> Tensor:
    """Apply the repetition penalty, and forbid repeated n-grams and banned tokens.

    `scores`, `[B, V]`, are logits, or log-probabilities in a search; `histories` are the B
    sequences up to now, including prompts.
    """
    if decoding.repetition_penalty == 1 and not (decoding.no_repeat_ngram or decoding.never):
        return scores
    scores = scores.clone()
    scores[:, list(decoding.never)] = NEVER
    if decoding.repetition_penalty == 1 and not decoding.no_repeat_ngram:
        return scores
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


def bound_lengths(
    scores: Tensor, places: Sequence[tuple[int, int, Collection[int]]], decoding: Decoding
) -> Tensor:
    """Forbid an end before `min_new_tokens`, and all but `forced_end` at the last token.

    Args:
        scores: `[B, V]`, as `penalize` returns them.
        places: for each sequence how many tokens were written, how many may be, and the tokens
            that end it.
        decoding: whose limits are kept.
    """
    if not decoding.min_new_tokens and decoding.forced_end is None:
        return scores
    scores = scores.clone()
    for row, (written, limit, stops) in zip(scores, places, strict=True):
        if written < decoding.min_new_tokens:
            row[list(stops)] = NEVER
        if decoding.forced_end is not None and written == limit - 1:
            row[:] = NEVER
            row[decoding.forced_end] = 0.0
    return scores


def renormalized(scores: Tensor) -> Tensor:
    """Log-probabilities among the tokens that are left; -inf where none is."""
    shares = scores.log_softmax(-1)
    return shares.masked_fill(shares.isnan(), NEVER)


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
