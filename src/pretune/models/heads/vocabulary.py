"""Scoring tokens over a vocabulary without ever holding all the logits.

The logits of 8,192 tokens over 50,257 words take 1.6 GB, and their gradient another 1.6 GB. Here
they exist for some rows at a time. Loss and gradient of those rows are computed together, and only
tensors of the size of the hidden states and of the table are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretune.data.batch import Layout
from pretune.models import ops
from pretune.models.language_model import SequenceState

#: Bytes of logits that may exist at a time.
CHUNK_BYTES = 128 << 20


@dataclass(frozen=True)
class Scores:
    """How well a model predicted some tokens.

    Attributes:
        sum: scalar with its graph: the loss, summed over the tokens.
        count: number of tokens.
        cross_entropy: scalar without a graph: the sum of -log p, in nats.
        z_loss: scalar without a graph: the z-loss that is part of `sum`.
        right: number of tokens that were the most probable ones; -1 in training, where it is not
            computed.
        nats: `[R]` -log p of each token, without a graph.
        state: the state after the batch, from a model that carries one (`StatefulLM`).
        divergence: scalar without a graph: with soft targets, the sum of the tokens' divergences.
        agreeing: with soft targets, the number of tokens whose most probable one is the teacher's;
            -1 in training.
        drawn: `[R]` int64, with `draws`: a token that was drawn for each row; see `score_tokens`.
    """

    sum: Tensor
    count: int
    cross_entropy: Tensor
    z_loss: Tensor
    right: int
    nats: Tensor
    state: SequenceState | None = None
    divergence: Tensor | None = None
    agreeing: int = -1
    drawn: Tensor | None = None

    def each(self, layout: Layout) -> list[float]:
        """The cross-entropy of each sequence, in nats."""
        parts = torch.split(self.nats, list(layout.lengths))
        return [float(part.double().sum()) for part in parts]


@dataclass(frozen=True)
class SoftTargets:
    """What a teacher expects at some tokens, for a loss that compares distributions.

    The tokens that have no probability of their own count as one: a teacher is kept as its K most
    probable tokens and what is left, and a student that agrees with it has no gradient.

    Attributes:
        probs: `[R, V]` the teacher's probabilities at the temperature; with `ids` `[R, K + 1]`,
            those of K tokens and that of all others together. Rows add up to 1.
        ids: `[R, K]` int64: the tokens, the most probable first.
        temperature: T, which divides the student's logits, too.
        weight: of T^2 times the divergence in the loss (Hinton et al. 2015, section 2: the factor
            keeps its gradient as large as that of the cross-entropy).
        label_weight: of the cross-entropy of the labels, with its smoothing and z-loss.
    """

    probs: Tensor
    ids: Tensor | None
    temperature: float
    weight: float
    label_weight: float

    @property
    def best(self) -> Tensor:
        """`[R]` the teacher's most probable tokens."""
        return self.probs.argmax(-1) if self.ids is None else self.ids[:, 0]

    def part(self, rows: slice) -> SoftTargets:
        """The targets of some rows."""
        ids = None if self.ids is None else self.ids[rows]
        return replace(self, probs=self.probs[rows], ids=ids)

    def divergence(self, logits: Tensor) -> Tensor:
        """Compute `[R]` KL(teacher || student) at the temperature, of logits `[R, V]`."""
        p, log_q = self.probs.float(), (logits / self.temperature).log_softmax(-1)
        if self.ids is not None:
            others = log_q.scatter(1, self.ids, -torch.inf).logsumexp(-1, keepdim=True)
            log_q = torch.cat([log_q.gather(1, self.ids), others], 1)
        return (torch.xlogy(p, p) - p * log_q).sum(-1)

    def gradient(self, logits: Tensor) -> Tensor:
        """Compute `[R, V]`, the gradient of T^2 times the divergence, of logits in float32."""
        p, q = self.probs.float(), (logits / self.temperature).softmax(-1)
        if self.ids is None:
            return (q - p).mul_(self.temperature)
        # All other tokens share what is left to them in the proportion of the student.
        own = q.gather(1, self.ids)
        others = q.scatter(1, self.ids, 0.0).sum(-1, keepdim=True)
        ratio = p[:, -1:] / others.clamp_min(torch.finfo(q.dtype).tiny)
        grad = q.mul_(1.0 - ratio).scatter_(1, self.ids, own - p[:, :-1])
        return grad.mul_(self.temperature)


def score_tokens(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft: SoftTargets | None = None,
    draws: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Scores:
    """Cross-entropy of tokens whose logits are `hidden @ table.T + bias`.

    Equal to `cross_entropy` of `tasks/losses.py` on the logits, with label smoothing (Szegedy et
    al. 2016, section 7) and z-loss (Chowdhery et al. 2022, section 5), in float32.

    Args:
        hidden: `[R, hidden]`.
        table: `[vocab, hidden]`, the output layer.
        bias: `[vocab]` or None.
        labels: `[R]` int64.
        smoothing: s: the share of the target that is spread evenly over the vocabulary.
        z_loss: weight of the penalty (log Z)^2.
        soft: what a teacher expects; its divergence is then part of the loss.
        draws: `[R]` float32 in [0, 1): draw a token for each row from what the model expects there,
            the first whose cumulative probability is above this number.
        chunk_bytes: memory that logits may take at a time.
    """
    # Logits are float32: as many rows at a time as the memory holds.
    rows = max(1, chunk_bytes // (4 * len(table)))
    trains = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (hidden, table, bias)
    )
    total, plain, penalty, counts, nats, divergence, drawn = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, table, bias, labels, (rows, smoothing, z_loss, soft, draws, trains)
    )
    right, agreeing = (-1, -1) if trains else counts.tolist()
    scores = Scores(total, len(labels), plain, penalty, right, nats)
    if draws is not None:
        scores = replace(scores, drawn=drawn)
    return scores if soft is None else replace(scores, divergence=divergence, agreeing=agreeing)


def score_logits(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, z_loss: float = 0.0
) -> Scores:
    """Score tokens as `score_tokens` does where the logits exist already, without gradients.

    Args:
        logits: `[R, vocab]`.
        labels: `[R]` int64.
        smoothing: as for `score_tokens`.
        z_loss: as for `score_tokens`.
    """
    logits = logits.float()
    log_z = logits.logsumexp(-1)
    nats = log_z - logits.gather(1, labels[:, None])[:, 0]
    plain, penalty = nats.sum(), z_loss * log_z.square().sum()
    spread = (log_z - logits.mean(-1)).sum()
    right = int((logits.argmax(-1) == labels).sum())
    total = (1 - smoothing) * plain + smoothing * spread + penalty
    return Scores(total, len(labels), plain, penalty, right, nats)


def token_log_probs(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Log-probabilities `[R]` of tokens, with their graph, in float32.

    For losses that are no sum over tokens, so that the gradient of a token is known only after all
    of them were scored. Logits that fit into `chunk_bytes` are kept for the backward pass; more of
    them are computed a second time there.

    Args:
        hidden: `[R, hidden]`.
        table: `[vocab, hidden]`, the output layer.
        bias: `[vocab]` or None.
        labels: `[R]` int64.
        chunk_bytes: memory that logits may take at a time.
    """
    rows = max(1, chunk_bytes // (4 * len(table)))
    log_probs: Tensor = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, table, bias, labels, rows
    )
    return log_probs


def over_vocabulary(
    hidden: Tensor,
    table: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    smoothing: float,
    z_loss: float,
    soft: SoftTargets | None = None,
    draws: Tensor | None = None,
) -> Tensor | Scores:
    """Map `[R, hidden]` to logits `[R, vocab]`, or given `labels` to scores by `score_tokens`."""
    if labels is None:
        return ops.linear(hidden, table, bias)
    how: dict[str, Any] = {"smoothing": smoothing, "z_loss": z_loss, "soft": soft, "draws": draws}
    return score_tokens(hidden, table, bias, labels, **how)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        how: tuple[int, float, float, SoftTargets | None, Tensor | None, bool],
    ) -> tuple[Tensor, ...]:
        rows, smoothing, z_loss, soft, draws, trains = how
        sums = torch.zeros(4, dtype=torch.float32, device=hidden.device)
        counts = torch.zeros(2, dtype=torch.int64, device=hidden.device)
        nats = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        drawn = torch.empty_like(labels) if draws is not None else labels.new_empty(0)
        # Gradients are accumulated here, where the logits exist, and scaled in `backward`.
        wanted = [trains and need for need in ctx.needs_input_grad[:3]]
        grads = [
            torch.zeros_like(t) if need and t is not None else None
            for need, t in zip(wanted, (hidden, table, bias), strict=True)
        ]
        table = ops.rounded(table)
        for start in range(0, len(labels), rows):
            part, target = hidden[start : start + rows], labels[start : start + rows]
            # -log p = log Z - logit, summed up with the label smoothing and the z-loss.
            logits = ops.linear(part, table, bias).float()
            log_z = logits.logsumexp(-1)
            picked = logits.gather(1, target[:, None])[:, 0]
            nats[start : start + rows] = log_z - picked
            plain, penalty = (log_z - picked).sum(), z_loss * log_z.square().sum()
            spread = (log_z - logits.mean(-1)).sum() if smoothing else plain
            own = None if soft is None else soft.part(slice(start, start + rows))
            far = penalty.new_zeros(()) if own is None else own.divergence(logits).sum()
            smoothed = (1 - smoothing) * plain + smoothing * spread
            sums += torch.stack([smoothed, plain, penalty, far])
            if not trains:
                best = logits.argmax(-1)
                counts[0] += (best == target).sum()
                counts[1] += 0 if own is None else (best == own.best).sum()
                if draws is not None:
                    drawn[start : start + rows] = _drawn(logits.softmax(-1), draws, start)
                continue
            # What comes from the teacher, before the logits give way.
            taught = None if own is None else own.gradient(logits).mul_(own.weight)
            # d/dlogits: p (1 + 2 z log Z) - (1 - s) [label] - s / C, in the memory of the logits.
            grad = logits.sub_(log_z[:, None]).exp_()
            if draws is not None:
                drawn[start : start + rows] = _drawn(grad, draws, start)
            if z_loss:
                grad.mul_((1 + 2 * z_loss * log_z)[:, None])
            grad.scatter_add_(1, target[:, None], grad.new_full((len(target), 1), smoothing - 1))
            if smoothing:
                grad.sub_(smoothing / grad.shape[1])
            if own is not None and taught is not None:
                grad = taught.add_(grad, alpha=own.label_weight)
            _add_gradients(grads, grad.to(part.dtype), part, table, start)
        # The loss includes the penalty and the teacher; all other outputs are for reports.
        sums[0] += sums[2]
        if soft is not None:
            taught = soft.weight * soft.temperature**2 * sums[3]
            sums[0] = soft.label_weight * sums[0] + taught
        ctx.save_for_backward(*(g for g in grads if g is not None))
        ctx.has = [g is not None for g in grads]
        total, plain, penalty, far = (part.clone() for part in sums)
        outputs = (total, plain, penalty, counts, nats, far, drawn)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) * grad if has else None for has in ctx.has]
        return (*grads, None, None)


def _drawn(probs: Tensor, draws: Tensor, start: int) -> Tensor:
    """Draw a token `[R]` for each row of probabilities `[R, V]`, by the numbers from `start` on."""
    cumulative = probs.cumsum(-1)
    # Rounding may let a row end a little below or above 1.
    places = draws[start : start + len(probs), None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, places, right=True)[:, 0].clamp_(max=probs.shape[1] - 1)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, bias: Tensor | None, labels: Tensor, rows: int
    ) -> Tensor:
        log_probs = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        log_z = torch.empty_like(log_probs)
        weight, logits = ops.rounded(table), log_probs.new_empty(0)
        for start in range(0, len(labels), rows):
            part, target = hidden[start : start + rows], labels[start : start + rows]
            logits = ops.linear(part, weight, bias).float()
            log_z[start : start + rows] = logits.logsumexp(-1)
            picked = logits.gather(1, target[:, None])[:, 0]
            log_probs[start : start + rows] = picked - log_z[start : start + rows]
        # What is one chunk is kept; the rest is computed again.
        ctx.rows, ctx.kept = rows, len(labels) <= rows
        kept = (logits,) if ctx.kept else ()
        ctx.save_for_backward(hidden, table, bias, labels, log_z, *kept)
        kind = hidden.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, table, bias, labels, log_z, *kept = ctx.saved_tensors
        grads = [
            torch.zeros_like(t) if need and t is not None else None
            for need, t in zip(ctx.needs_input_grad[:3], (hidden, table, bias), strict=True)
        ]
        kind, dtype, enabled = ctx.autocast
        # Rounded as in the forward pass, where that was in bf16.
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            weight = ops.rounded(table)
            for start in range(0, len(labels), ctx.rows):
                rows = slice(start, start + ctx.rows)
                part, target, outer = hidden[rows], labels[rows], grad[rows]
                logits = kept[0] if kept else ops.linear(part, weight, bias).float()
                # d/dlogits: ([label] - p) times what comes from above.
                inner = (logits - log_z[rows][:, None]).exp_().mul_(-outer[:, None])
                inner.scatter_add_(1, target[:, None], outer[:, None])
                _add_gradients(grads, inner.to(part.dtype), part, weight, start)
        return (*grads, None, None)


def _add_gradients(
    grads: list[Tensor | None], grad: Tensor, part: Tensor, table: Tensor, start: int
) -> None:
    """Add the gradients of some rows of logits to those of hidden states, table and bias."""
    to_hidden, to_table, to_bias = grads
    if to_hidden is not None:
        to_hidden[start : start + len(part)] = ops.linear(grad, table.t())
    if to_table is not None:
        to_table += ops.linear(part.t(), grad.t()).t()
    if to_bias is not None:
        to_bias += grad.sum(0)
