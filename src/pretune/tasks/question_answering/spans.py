"""Spans of passages: the loss of their ends, and the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.arrays import Array
from pretune.data.batch import PackedBatch
from pretune.tasks.question_answering.features import (
    END,
    END_CHAR,
    FIRST_CHAR,
    PASSAGE,
    PASSAGE_END,
    START,
)


def sequence_of(batch: PackedBatch) -> Tensor:
    """Return `[T]` int64: the sequence of each token."""
    lengths = torch.tensor(batch.layout.lengths, device=batch.tokens.device)
    return torch.repeat_interleave(lengths, output_size=batch.num_tokens)


def allowed(batch: PackedBatch) -> Tensor:
    """Return `[T]` bool: the tokens of the passage, and `[CLS]`, which stands for no answer."""
    which, at, targets = sequence_of(batch), batch.positions, batch.targets
    inside = (at >= targets[PASSAGE][which]) & (at < targets[PASSAGE_END][which])
    return inside | (at == 0)


def span_loss(logits: Tensor, batch: PackedBatch, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean of the cross-entropies of the start and of the end, for each window.

    Each window has a softmax over its own tokens (BERT, section 4.2). transformers'
    `...ForQuestionAnswering` does the same with every token allowed.

    Args:
        logits: `[T, 2]` of starts and ends.
        batch: with `START` and `END`; a window with -1 does not count.
        mask: `[T]` bool: the allowed tokens; the first of a window is always among them.

    Returns:
        `[B]`, the loss of each window, 0 where it does not count; and `[B]` bool, whether it does.
    """
    which = sequence_of(batch)
    index = which[:, None].expand(-1, 2)
    scores = logits.float().masked_fill(~mask[:, None], -torch.inf)
    # The log-sum-exp of each window, with its highest score subtracted so that nothing overflows.
    top = scores.new_full((batch.num_sequences, 2), -torch.inf)
    top = top.scatter_reduce(0, index, scores.detach(), "amax")
    total = scores.new_zeros(batch.num_sequences, 2).index_add(
        0, which, (scores - top[which]).exp()
    )
    # The logits of the right tokens; where the answer's place is unknown, of any.
    ends = torch.stack([batch.targets[START], batch.targets[END]], dim=1)
    known = ends[:, 0] >= 0
    rows = batch.cu_seqlens[:-1].long()[:, None] + ends.clamp(min=0)
    each = (top + total.log() - scores.gather(0, rows)).mean(1)
    return each.masked_fill(~known, 0.0), known


@dataclass(frozen=True)
class WindowSpans:
    """The best spans of one window, best first.

    Attributes:
        scores: `[K]` float64, the sums of the logits of start and end.
        chars: `[K, 2]` int64, the first character in the passage, and the one after the last.
        null: the score of no answer, the sum of the logits of `[CLS]`.
    """

    scores: Array
    chars: Array
    null: float


def best_spans(
    logits: Tensor, batch: PackedBatch, *, longest: int, count: int
) -> list[WindowSpans]:
    """Find the best of all spans of each window.

    (BERT's own script compares only spans of the 20 best starts and the 20 best ends.)

    Args:
        logits: `[T, 2]` of starts and ends.
        batch: with the places of the passages and of their characters.
        longest: the maximum number of tokens of a span.
        count: K, the maximum number of spans of a window.
    """
    start, end = logits.detach().float().unbind(1)
    which, tokens = sequence_of(batch), torch.arange(len(start), device=start.device)
    offsets = batch.cu_seqlens[:-1].long()
    begin, stop = (offsets + batch.targets[name] for name in (PASSAGE, PASSAGE_END))
    # [T, longest]: in row t and column d the span from token t to token t + d.
    ahead = F.pad(end, (0, longest - 1), value=-torch.inf).unfold(0, longest, 1)
    further = torch.arange(longest, device=start.device)
    inside = (tokens >= begin[which])[:, None] & (tokens[:, None] + further < stop[which][:, None])
    spans = (start[:, None] + ahead).masked_fill(~inside, -torch.inf).cpu()
    nulls = (start + end)[offsets].tolist()
    first, last = (batch.targets[name].cpu().numpy() for name in (FIRST_CHAR, END_CHAR))
    best_of_each = []
    for low, high, null in zip(begin.tolist(), stop.tolist(), nulls, strict=True):
        flat = spans[low:high].flatten()
        best = flat.topk(min(count, len(flat)))
        scores = best.values.numpy().astype(np.float64)
        places = best.indices.numpy()[np.isfinite(scores)]
        starts = low + places // longest
        chars = np.stack([first[starts], last[starts + places % longest]], axis=1)
        best_of_each.append(WindowSpans(scores[np.isfinite(scores)], chars.astype(np.int64), null))
    return best_of_each


def merged(parts: Sequence[WindowSpans], count: int) -> WindowSpans:
    """Merge the best spans of the windows of a passage.

    A span that several windows contain counts once, with its best score. There is no answer only if
    no window has one: the lowest score of no answer counts, as in BERT's own script. (That script
    also reads each word only in the window with its "maximum context". Here the scores decide, as
    in transformers' example.)

    Args:
        parts: the best spans of each window.
        count: the maximum number of spans to keep.
    """
    scores = np.concatenate([part.scores for part in parts])
    chars = np.concatenate([part.chars for part in parts])
    order = np.lexsort((chars[:, 1], chars[:, 0], -scores))
    kept: dict[tuple[int, int], float] = {}
    for i in order.tolist():
        kept.setdefault((int(chars[i, 0]), int(chars[i, 1])), float(scores[i]))
        if len(kept) == count:
            break
    return WindowSpans(
        np.array(list(kept.values())),
        np.array(list(kept), dtype=np.int64).reshape(-1, 2),
        min(part.null for part in parts),
    )
