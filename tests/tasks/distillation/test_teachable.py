"""How a student is compared with a teacher, against plain torch and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import PackedBatch
from pretune.models.heads.vocabulary import SoftTargets, score_tokens
from pretune.tasks.distillation.hidden import cosine_distances, relation_distances
from pretune.tasks.distillation.teachable import compare_classes, compare_flags
from pretune.tasks.question_answering import windows

R, H, V = 7, 5, 11


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distilbert(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The soft loss of DistilBERT's training script, summed over rows."""
    kl = torch.nn.KLDivLoss(reduction="sum")
    far = kl(F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1))
    return far * temperature**2


def soft_targets(teacher: Tensor, temperature: float, k: int | None, **weights: Any) -> SoftTargets:
    probs = (teacher / temperature).softmax(-1)
    if k is None:
        return SoftTargets(probs, None, temperature, **weights)
    top = probs.topk(k)
    rest = 1 - top.values.sum(-1, keepdim=True)
    return SoftTargets(torch.cat([top.values, rest], 1), top.indices, temperature, **weights)


@pytest.mark.parametrize("chunk_bytes", [4 * V * 2, 1 << 20])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_scores_with_a_teacher_are_distilberts_loss(temperature: float, chunk_bytes: int) -> None:
    """Of hidden states, table and bias also the gradients, against autograd."""
    parts = [drawn(R, H).requires_grad_(), drawn(V, H, seed=1).requires_grad_()]
    parts.append(drawn(V, seed=2).requires_grad_())
    teacher, labels = drawn(R, V, seed=3), torch.arange(R)
    soft = soft_targets(teacher, temperature, None, weight=5.0, label_weight=2.0)
    how: dict[str, Any] = {"smoothing": 0.1, "z_loss": 0.01, "chunk_bytes": chunk_bytes}
    ours = score_tokens(*parts, labels, soft=soft, **how)
    grads = torch.autograd.grad(3 * ours.sum, parts)
    logits = parts[0] @ parts[1].T + parts[2]
    own = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    own = own + 0.01 * logits.logsumexp(-1).square().sum()
    theirs = 5 * distilbert(logits, teacher, temperature) + 2 * own
    torch.testing.assert_close(ours.sum, theirs)
    for mine, other in zip(grads, torch.autograd.grad(3 * theirs, parts), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert ours.divergence is not None
    far = distilbert(logits, teacher, temperature) / temperature**2
    torch.testing.assert_close(ours.divergence, far.detach())
    with torch.no_grad():
        evaluated = score_tokens(*parts, labels, soft=soft)
    assert evaluated.agreeing == int((logits.argmax(-1) == teacher.argmax(-1)).sum())


@pytest.mark.parametrize("k", [1, 4, V - 1])
def test_the_rest_of_a_vocabulary_counts_as_one_token(k: int) -> None:
    teacher, logits = drawn(R, V), drawn(R, V, seed=1).requires_grad_()
    soft = soft_targets(teacher, 2.0, k, weight=1.0, label_weight=0.0)
    far = soft.divergence(logits)
    q = (logits / 2).softmax(-1)
    assert soft.ids is not None
    own = q.gather(1, soft.ids)
    q = torch.cat([own, 1 - own.sum(-1, keepdim=True)], 1)
    torch.testing.assert_close(far, (soft.probs * (soft.probs / q).log()).sum(-1))
    (expected,) = torch.autograd.grad(4 * far.sum(), logits)
    torch.testing.assert_close(soft.gradient(logits.detach()), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("k", [None, 3])
def test_a_student_that_is_its_teacher_has_no_gradient(k: int | None) -> None:
    logits = drawn(R, V)
    soft = soft_targets(logits, 3.0, k, weight=1.0, label_weight=0.0)
    torch.testing.assert_close(soft.gradient(logits), torch.zeros(R, V))


def test_the_square_of_the_temperature_keeps_the_gradient_as_large() -> None:
    """In the limit it is (z - v) / C of centred logits, whatever T (Hinton et al. 2015, eq. 4)."""
    student, teacher = (
        drawn(R, V, seed=i) - drawn(R, V, seed=i).mean(-1, keepdim=True) for i in (0, 1)
    )
    for temperature in (1000.0, 4000.0):
        logits = student.clone().double().requires_grad_()
        soft = (teacher.double() / temperature).softmax(-1)
        compared = compare_classes(logits, soft, temperature)
        # In float32 such small differences are lost: the formula itself is tested.
        log_q = (logits / temperature).log_softmax(-1)
        far = (soft * (soft.log() - log_q)).sum() * compared.scale
        (grad,) = torch.autograd.grad(far, logits)
        torch.testing.assert_close(grad, (student - teacher).double() / V, rtol=0.01, atol=1e-3)


def test_flags_are_binary_kl() -> None:
    logits, teacher = drawn(R, 3).requires_grad_(), drawn(R, 3, seed=1)
    p, q = (teacher / 2).sigmoid(), (logits / 2).sigmoid()
    compared = compare_flags(logits, p, 2.0)
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(compared.divergence, expected.flatten())
    assert compared.scale == 4
    assert compared.agreeing.tolist() == ((p > 0.5) == (q > 0.5)).float().flatten().tolist()
    torch.testing.assert_close(compare_flags(teacher, p, 2.0).divergence, torch.zeros(R * 3))


def test_spans_are_compared_window_by_window() -> None:
    targets = {windows.PASSAGE: [2, 1], windows.PASSAGE_END: [4, 2]}
    batch = PackedBatch.of([[1, 2, 3, 4, 5], [1, 2, 3]], targets=targets)
    logits, teacher = drawn(8, 2), drawn(8, 2, seed=1)
    soft = windows.span_log_probs(teacher / 2, batch).exp()
    far, agreeing = windows.span_divergence(logits, soft, batch, 2.0)
    for i, places in enumerate(([0, 2, 3], [5, 6])):
        sides = []
        for column in range(2):
            p, q = ((x[places, column] / 2).softmax(0) for x in (teacher, logits))
            sides.append((p * (p / q).log()).sum())
        torch.testing.assert_close(far[i], torch.stack(sides).mean())
        same = (teacher[places].argmax(0) == logits[places].argmax(0)).all()
        assert agreeing[i] == float(same)


@pytest.mark.parametrize("causal", [False, True])
def test_relations_are_minilms(causal: bool) -> None:
    """Of models of other widths: KL of attention weights and of relations of values."""
    lengths, heads, sizes = [3, 5], 2, (4, 8)
    batch = PackedBatch.of([[1] * n for n in lengths])
    student, teacher = (drawn(8, 3 * size, seed=size) for size in sizes)
    ours = relation_distances(student, teacher, heads, batch.layout, causal=causal)
    start = 0
    for i, n in enumerate(lengths):
        total = torch.zeros(())
        for first, second in ((0, 1), (2, 2)):
            weights = []
            for qkv, size in ((student, 4), (teacher, 8)):
                own = qkv[start : start + n].view(n, 3, heads, size // heads)
                scores = torch.einsum("ihd,jhd->hij", own[:, first], own[:, second])
                scores = scores / (size // heads) ** 0.5
                if causal:
                    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
                    scores = scores.masked_fill(hidden, -1e30)
                weights.append(scores.softmax(-1))
            q, p = weights
            total += F.kl_div(q.clamp_min(1e-30).log(), p, reduction="sum") / (heads * n)
        torch.testing.assert_close(ours[i], total)
        start += n


def test_hidden_states_are_compared_by_the_cosine_loss_of_torch() -> None:
    batch = PackedBatch.of([[1, 2, 3], [4, 5]])
    student, teacher = drawn(5, H), drawn(5, H, seed=1)
    ours = cosine_distances(student, teacher, batch)
    for i, rows in enumerate(
        (slice(0, 2), slice(2, 5)) if batch.layout.lengths[0] == 2 else (slice(0, 3), slice(3, 5))
    ):
        ones = torch.ones(rows.stop - rows.start)
        torch.testing.assert_close(
            ours[i], F.cosine_embedding_loss(student[rows], teacher[rows], ones)
        )
