"""Spans of passages: their loss, and the best ones."""

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
    """`[T]` int64: which sequence of the batch each token belongs to."""
    lengths = torch.tensor(batch.layout.lengths, device=batch.tokens.device)
    return torch.repeat_interleave(lengths, output_size=batch.num_tokens)


def allowed(batch: PackedBatch) -> Tensor:
    """`[T]` bool: the tokens of the passage, and the `[CLS]` that says there is no answer."""
    which, at = sequence_of(batch), batch.positions
    targets = batch.targets
    inside = (at >= targets[PASSAGE][which]) & (at < targets[PASSAGE_END][which])
    return inside | (at == 0)


def span_loss(logits: Tensor, batch: PackedBatch, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the cross-entropies of the start and of the end, of each window.

    The softmax of each window is over its own tokens alone; BERT's section 4.2 and transformers'
    `...ForQuestionAnswering`, which let every token compete.

    Args:
        logits: `[T, 2]` of starts and ends.
        batch: with `START` and `END`; a window with -1 does not count.
        mask: `[T]` bool: which tokens compete; the first of a window always does.

    Returns:
        `[B]`: the loss of each window, and whether it counts; where not, the loss is 0.
    """
    which = sequence_of(batch)
    index = which[:, None].expand(-1, 2)
    scores = logits.float().masked_fill(~mask[:, None], -torch.inf)
    # log-sum-exp of each window, less its highest score, so that nothing overflows.
    top = scores.new_full((batch.num_sequences, 2), -torch.inf)
    top = top.scatter_reduce(0, index, scores.detach(), "amax")
    total = scores.new_zeros(batch.num_sequences, 2).index_add(
        0, which, (scores - top[which]).exp()
    )
    ends = torch.stack([batch.targets[START], batch.targets[END]], dim=1)
    known = ends[:, 0] >= 0
    rows = batch.cu_seqlens[:-1].long()[:, None] + ends.clamp(min=0)
    each = (top + total.log() - scores.gather(0, rows)).mean(1)
    return each.masked_fill(~known, 0.0), known


@dataclass(frozen=True)
class WindowSpans:
    """The best spans of one window, best first.

    Attributes:
        scores: `[K]` float64: the logit of the start plus that of the end.
        chars: `[K, 2]` int64: the first character in the passage, and the one after the last.
        null: the score of no answer: the logits of `[CLS]`.
    """

    scores: Array
    chars: Array
    null: float


def best_spans(
    logits: Tensor, batch: PackedBatch, *, longest: int, count: int
) -> list[WindowSpans]:
    """The best spans of each window: all are compared, none is passed over.

    (BERT's own script looks at the 20 best starts and the 20 best ends only.)

    Args:
        logits: `[T, 2]` of starts and ends.
        batch: with the places of the passages and of their characters.
        longest: the most tokens of a span.
        count: K, the most spans of a window.
    """
    start, end = logits.detach().float().unbind(1)
    which, tokens = sequence_of(batch), torch.arange(len(start), device=start.device)
    offsets = batch.cu_seqlens[:-1].long()
    begin, stop = (offsets + batch.targets[name] for name in (PASSAGE, PASSAGE_END))
    # [T, longest]: the span from token t over d more.
    ahead = F.pad(end, (0, longest - 1), value=-torch.inf).unfold(0, longest, 1)
    further = torch.arange(longest, device=start.device)
    inside = (tokens >= begin[which])[:, None] & (tokens[:, None] + further < stop[which][:, None])
    spans = (start[:, None] + ahead).masked_fill(~inside, -torch.inf).cpu()
    nulls = (start + end)[offsets].tolist()
    first, last = (batch.targets[name].cpu().numpy() for name in (FIRST_CHAR, END_CHAR))
    found = []
    for low, high, null in zip(begin.tolist(), stop.tolist(), nulls, strict=True):
        flat = spans[low:high].flatten()
        best = flat.topk(min(count, len(flat)))
        scores = best.values.numpy().astype(np.float64)
        places = best.indices.numpy()[np.isfinite(scores)]
        starts = low + places // longest
        chars = np.stack([first[starts], last[starts + places % longest]], axis=1)
        found.append(WindowSpans(scores[np.isfinite(scores)], chars.astype(np.int64), null))
    return found


def merged(parts: Sequence[WindowSpans], count: int) -> WindowSpans:
    """The best spans of several windows of one passage, each span once.

    A span that several windows have counts with its best score, and there is no answer only if all
    windows say so: the lowest of their scores for none counts, as in BERT's own script. (That
    script also has a rule of the "maximum context", by which a word is read only in the window that
    shows most around it. Here the scores decide, as in transformers' example.)
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
