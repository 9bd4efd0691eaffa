from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pretune.models.heads.crf import CrfWeights, log_likelihood, marginals, viterbi

LENGTHS = [3, 0, 1, 4, 3]
LABELS = 3


def made() -> tuple[Tensor, CrfWeights]:
    torch.manual_seed(0)
    weights = CrfWeights(torch.randn(LABELS, LABELS), torch.randn(LABELS), torch.randn(LABELS))
    return torch.randn(sum(LENGTHS), LABELS), weights


def every(
    emissions: Tensor, weights: CrfWeights, begins: bool, ends: bool
) -> dict[tuple[int, ...], float]:
    """The score of each sequence of labels, one by one."""
    found = {}
    for path in itertools.product(range(LABELS), repeat=len(emissions)):
        score = sum(float(emissions[i, y]) for i, y in enumerate(path))
        score += sum(float(weights.transitions[a, b]) for a, b in itertools.pairwise(path))
        score += float(weights.start[path[0]]) * begins + float(weights.end[path[-1]]) * ends
        found[path] = score
    return found


def test_everything_is_as_by_enumeration() -> None:
    emissions, weights = made()
    labels = torch.randint(LABELS, (len(emissions),))
    begins = torch.tensor([True, True, False, False, True])
    ends = torch.tensor([True, True, True, False, False])
    found = log_likelihood(emissions, labels, LENGTHS, weights, begins, ends)
    best, sure = viterbi(emissions, LENGTHS, weights), marginals(emissions, LENGTHS, weights)
    start = 0
    for i, length in enumerate(LENGTHS):
        if length == 0:
            assert found[i] == 0
            continue
        part = slice(start, start + length)
        scores = every(emissions[part], weights, bool(begins[i]), bool(ends[i]))
        total = torch.tensor(list(scores.values())).logsumexp(0)
        expected = scores[tuple(labels[part].tolist())] - float(total)
        assert float(found[i]) == pytest.approx(expected, abs=1e-5)
        whole = every(emissions[part], weights, True, True)
        assert tuple(best[part].tolist()) == max(whole, key=lambda path: whole[path])
        total = torch.tensor(list(whole.values())).logsumexp(0)
        for at, label in itertools.product(range(length), range(LABELS)):
            those = torch.tensor([s for path, s in whole.items() if path[at] == label])
            assert float(sure[start + at, label]) == pytest.approx(
                float((those.logsumexp(0) - total).exp()), abs=1e-5
            )
        start += length


def test_gradients() -> None:
    emissions, weights = made()
    labels = torch.randint(LABELS, (len(emissions),))
    parts = [emissions, weights.transitions, weights.start, weights.end]
    given = [part.double().requires_grad_() for part in parts]
    assert torch.autograd.gradcheck(
        lambda e, t, s, f: log_likelihood(e, labels, LENGTHS, CrfWeights(t, s, f)), given
    )


def test_what_is_not_allowed_is_not_found() -> None:
    emissions, weights = made()
    follows = torch.ones(LABELS, LABELS, dtype=torch.bool)
    follows[0, 1] = False
    first, last = torch.tensor([False, True, True]), torch.tensor([True, True, False])
    only = weights.only(follows, first, last)
    best = viterbi(emissions, LENGTHS, only).split(LENGTHS)
    for part, own in zip(emissions.split(LENGTHS), best, strict=True):
        if len(part):
            scores = every(part, only, True, True)
            assert tuple(own.tolist()) == max(scores, key=lambda path: scores[path])


def test_no_words_at_all() -> None:
    _, weights = made()
    none = torch.empty(0, LABELS)
    assert log_likelihood(none, torch.empty(0, dtype=torch.int64), [0, 0], weights).tolist() == [
        0,
        0,
    ]
    assert len(viterbi(none, [0], weights)) == len(marginals(none, [0], weights)) == 0
