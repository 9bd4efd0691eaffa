"""Passages as windows of tokens, the right answers in them, and the best spans of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.arrays import Array
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError, DataError
from pretune.text.chunks import split_text
from pretune.tokenizers.tokenizer import Tokenizer

#: Targets of a window: the first and the last token of the answer, counted in the window; 0, the
#: `[CLS]`, where the window has none; -1 where the answer's place is unknown.
START, END = "start", "end"
#: Targets of a window: the first token of the passage, and the one after its last.
PASSAGE, PASSAGE_END = "passage", "passage_end"
#: Targets of each token: its first character in the passage, and the one after its last; else 0.
FIRST_CHAR, END_CHAR = "first_char", "end_char"


@dataclass(frozen=True)
class Answer:
    """A right answer: its text, and its first character in the passage (-1: unknown)."""

    text: str
    start: int


def right_answers(row: Mapping[str, Any], where: str) -> list[Answer]:
    """Return the right answers of a record; none where the passage has none.

    Args:
        row: `answers` as in the Hub's SQuAD, `{"text": [...], "answer_start": [...]}`, or a list of
            `{"text": ..., "answer_start": ...}`; `is_impossible: true` overrules it.
        where: the record's place, for errors.

    Raises:
        DataError: `answers` has neither form.
    """
    given = row.get("answers")
    if row.get("is_impossible") is True or given is None:
        return []
    if isinstance(given, Mapping):
        texts: Any = given.get("text")
        starts = given.get("answer_start") or [-1] * len(texts or ())
        if _is_list(texts, str) and _is_list(starts, int) and len(texts) == len(starts):
            return [Answer(t, s) for t, s in zip(texts, starts, strict=True) if t]
    elif _is_list(given, Mapping):
        pairs = [(item.get("text"), item.get("answer_start", -1)) for item in given]
        if all(isinstance(t, str) and isinstance(s, int) for t, s in pairs):
            return [Answer(t, s) for t, s in pairs if t]
    raise DataError(
        f"{where}: these are no answers ({str(given)[:60]!r})",
        'Write {"text": ["..."], "answer_start": [17]}, with the answer\'s first character in the '
        "context, counted from 0; empty lists where there is no answer.",
    )


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


@dataclass(frozen=True)
class Frame:
    """The special tokens before, between and after two texts: `[CLS]`, `[SEP]`, `[SEP]`.

    `segments` is `[5]`: of `before`, the first text, `between`, the second text, `after`.
    """

    before: Array
    between: Array
    after: Array
    segments: Array

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Read the frame from an example.

        Raises:
            CheckpointError: the tokenizer puts no token before a pair, or drops one of its texts.
        """
        example = tokenizer.engine.encode("a", "b")
        sources = example.sequence_ids
        if 0 not in sources or 1 not in sources or sources[0] is not None:
            raise CheckpointError(
                "the tokenizer makes no [CLS] question [SEP] passage [SEP] of two texts",
                "Question answering needs the tokenizer of BERT or a similar model.",
            )
        first, second = sources.index(0), sources.index(1)
        middle = len(sources) - sources[::-1].index(0)
        stop = len(sources) - sources[::-1].index(1)
        ids = np.array(example.ids, dtype=np.int32)
        kinds = np.array(example.type_ids, dtype=np.uint8)
        segments = kinds[[0, first, middle, second, min(stop, len(ids) - 1)]]
        return cls(ids[:first], ids[middle:second], ids[stop:], segments)


@dataclass(frozen=True)
class Passage:
    """A passage in N tokens, all `[N]` int32.

    `first` has the first character of each token, `end` the one after its last.
    """

    ids: Array
    first: Array
    end: Array

    def place(self, answer: Answer) -> tuple[int, int] | None:
        """Return the answer's first and last token; None if no token has any part of it."""
        first = int(np.searchsorted(self.end, answer.start, side="right"))
        last = int(np.searchsorted(self.first, answer.start + len(answer.text), side="left")) - 1
        return (first, last) if first <= last else None


def tokenize_passages(texts: Sequence[str], tokenizer: Tokenizer) -> list[Passage]:
    """Tokenize passages of any length in parallel; long ones chunk by chunk."""
    chunks = [list(split_text(text)) for text in texts]
    encoded = iter(tokenizer.encode_bare([chunk for parts in chunks for chunk in parts]))
    passages = []
    for parts in chunks:
        ids, offsets, base = [], [], 0
        for chunk in parts:
            encoding = next(encoded)
            ids.append(np.array(encoding.ids, dtype=np.int32))
            offsets.append(np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2) + base)
            base += len(chunk)
        first, end = np.ascontiguousarray(np.concatenate(offsets).T)
        passages.append(Passage(np.concatenate(ids), first, end))
    return passages


def window_starts(tokens: int, room: int, overlap: int) -> range:
    """Return where windows of `room` tokens begin, each sharing `overlap` tokens with the next.

    The last window may be shorter; a passage without tokens is one empty window.
    """
    step = room - overlap
    count = 1 + max(0, -(-(tokens - room) // step))
    return range(0, count * step, step)


def allowed(batch: PackedBatch) -> Tensor:
    """Return `[T]` bool: the tokens of the passage, and `[CLS]`, which stands for no answer."""
    which, at, targets = batch.owners, batch.positions, batch.targets
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
    which = batch.owners
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


def span_log_probs(logits: Tensor, batch: PackedBatch) -> Tensor:
    """Compute `[T, 2]` the log-probabilities of starts and ends over the tokens of each window.

    Tokens that cannot be an answer have -inf.
    """
    scores = logits.float().masked_fill(~allowed(batch)[:, None], -torch.inf)
    parts = torch.split(scores, list(batch.layout.lengths))
    return torch.cat([part.log_softmax(0) for part in parts])


def span_divergence(
    logits: Tensor, soft: Tensor, batch: PackedBatch, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compare a student's spans with a teacher's, window by window.

    Args:
        logits: `[T, 2]` of the student.
        soft: `[T, 2]` the teacher's probabilities at the temperature.
        batch: the windows.
        temperature: T.

    Returns:
        `[B]` the mean of KL(teacher || student) of start and end, with its graph; and `[B]` 1 where
        both have the same most probable start and end, else 0.
    """
    lengths = list(batch.layout.lengths)
    mine = torch.split(span_log_probs(logits / temperature, batch), lengths)
    far, agreeing = [], []
    for log_q, p in zip(mine, torch.split(soft, lengths), strict=True):
        p = p / p.sum(0)
        # Where nothing can be an answer, both have none.
        crossed = (p * log_q.masked_fill(p == 0, 0.0)).sum(0)
        far.append((torch.xlogy(p, p).sum(0) - crossed).mean())
        agreeing.append((log_q.argmax(0) == p.argmax(0)).all())
    return torch.stack(far), torch.stack(agreeing).float()


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

    The logits `[T, 2]` are of starts and ends; a span has at most `longest` tokens, a window
    at most `count` spans. (BERT's own script compares only spans of the 20 best starts and ends.)
    """
    start, end = logits.detach().float().unbind(1)
    which, tokens = batch.owners, torch.arange(len(start), device=start.device)
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
    """Merge the best spans of the windows of a passage; keep at most `count`.

    A span that several windows contain counts once, with its best score. There is no answer only if
    no window has one: the lowest score of no answer counts, as in BERT's own script. (That script
    also reads each word only in the window with its "maximum context". Here the scores decide, as
    in transformers' example.)
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
