"""Continuous batching: continuations that join and leave a running batch token by token."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from pretune.decoding.continuations import (
    Draft,
    Prompt,
    TextChunk,
    TopTokens,
    WritingRequest,
    without_blanks,
)
from pretune.decoding.decoding import Decoding
from pretune.decoding.sampling import NEVER, bound_lengths, draw, narrow, penalize
from pretune.decoding.sequence_reader import ReadPrompts, SequenceReader
from pretune.errors import NotFiniteError, PretuneError
from pretune.models.language_model import LanguageModel
from pretune.tokenizers.tokenizer import Tokenizer

#: Tokens of prompts that are read between two tokens of those that write: on a CPU, a pass over so
#: many takes a few times as long as a pass over one token of each.
PROMPT_TOKENS = 256


@dataclass(eq=False)
class _Waiting:
    """A request of which some continuations have not begun."""

    request: WritingRequest
    begun: int = 0  # how many have
    read: ReadPrompts | None = None  # its prompt, if it was read apart from others

    @property
    def left(self) -> int:
        """How many continuations have not begun."""
        return self.request.decoding.samples - self.begun


#: A request, and how many of its continuations begin.
_Joining = tuple[_Waiting, int]


class LiveBatch:
    """Continuations that are written side by side, a token of each at a time.

    A request joins at the next token and leaves with its last, so that none waits for another to
    end. Each has its own `Decoding`, and gets what it would get alone, except for rounding. A
    prompt is read once, however many samples continue it and whenever those find room. If `step`
    raises an error, the batch cannot go on.

    Args:
        model: on `device`, in evaluation mode.
        tokenizer: decodes the tokens.
        device: where the model is.
        context: entered whenever the model runs, e.g. for bf16.
        batch_size: continuations at a time; affects memory and speed only.
        prompt_tokens: the largest number of tokens of prompts to read in a step, so that the next
            token of the others comes soon. A longer prompt is read over several steps, with half of
            that number at least, while shorter ones join beside it. None: all that there is room
            for, at once.
        join_together: continuations that join a running batch at a time. More of them read their
            prompts in fewer passes, and leave places empty until then.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        batch_size: int = 16,
        prompt_tokens: int | None = PROMPT_TOKENS,
        join_together: int = 1,
    ) -> None:
        self._tokenizer, self._opening = tokenizer, model.opening
        self._rows = model.vocab_size
        self._reader = SequenceReader(model, device, context)
        self._batch_size = max(1, batch_size)
        self._prompt_tokens = sys.maxsize if prompt_tokens is None else max(2, prompt_tokens)
        self._join_together = join_together
        self._live: list[Draft] = []  # in the order of the reader's sequences
        self._waiting: deque[_Waiting] = deque()
        self._in_parts: _Waiting | None = None  # the one whose prompt is being read over steps
        self._asked = self._unbegun = 0  # requests so far; continuations that have not begun

    def __len__(self) -> int:
        """The number of continuations that have not ended."""
        return len(self._live) + self._unbegun

    def add(
        self,
        prompt: Prompt,
        decoding: Decoding,
        stops: Collection[int] = (),
        stop_texts: Sequence[str] = (),
        *,
        tag: Any = None,
        top_logprobs: int = 0,
    ) -> None:
        """Ask for the continuations of a prompt; they join as soon as there is room.

        Args:
            prompt: what to continue.
            decoding: how; `samples` of them.
            stops: token ids that end a continuation.
            stop_texts: texts that end a continuation and are not part of it. If `decoding` has
                `stop_tokens`, those replace both.
            tag: comes back with each piece.
            top_logprobs: how many of the most probable tokens to report for each place.

        Raises:
            PretuneError: the prompt is empty, or a beam search was asked for.
        """
        if decoding.beams > 1:
            raise PretuneError(
                f"beams is {decoding.beams}, but a search is not written token by token",
                "Leave out beams, or use `Writer`.",
            )
        if not prompt.ids:
            raise PretuneError("the prompt has no tokens", "Begin it with a token of the model.")
        decoding = without_blanks(decoding, self._tokenizer, self._rows)
        more = {"tag": tag, "top_logprobs": top_logprobs}
        request = WritingRequest.of(self._asked, prompt, decoding, stops, stop_texts, **more)
        self._waiting.append(_Waiting(request))
        self._asked += 1
        self._unbegun += decoding.samples

    @torch.inference_mode()
    def cancel(self, tag: Any) -> None:
        """Drop all continuations of the requests with this tag; their places are free at once."""
        self._waiting = deque(entry for entry in self._waiting if entry.request.tag != tag)
        self._unbegun = sum(entry.left for entry in self._waiting)
        if self._in_parts is not None and self._in_parts.request.tag == tag:
            self._in_parts = None
        self._leave([draft.request.tag == tag for draft in self._live])

    @torch.inference_mode()
    def step(self) -> list[tuple[Any, TextChunk]]:
        """Write one token of each live continuation.

        Returns:
            for each of them the tag of its request and the new piece.
        """
        # Read what was written last, and the prompts of those that join.
        if self._live:
            self._reader.feed([draft.tokens[-1] for draft in self._live])
        self._admit()
        if not self._live:
            return []
        # One token each; those that end leave at once.
        choices = _choose(self._reader.logits, self._reader.histories, self._live)
        pieces = []
        for draft, (token, logprob, top) in zip(self._live, choices, strict=True):
            if token is None:
                draft.finish = "exhausted"
            piece = draft.piece() if token is None else draft.take(token, logprob, top)
            pieces.append((draft.request.tag, piece))
        self._leave([draft.finish is not None for draft in self._live])
        return pieces

    def _admit(self) -> None:
        """Begin what waits, as far as there is room and prompts can be read."""
        short, ready, spent = self._joining()
        # Short prompts are read in one pass. One whose samples have no room yet is also kept.
        if short:
            read = self._reader.read([entry.request.prompt.ids for entry, _ in short])
            last, copies = short[-1]
            if copies < last.left:
                last.read = read.only(len(short) - 1)
            self._begin(read, short)
        for entry, copies in ready:
            self._begin_read(entry, copies)
        if self._in_parts is not None and spent < self._prompt_tokens:
            self._read_part(self._in_parts, self._prompt_tokens - spent)

    def _joining(self) -> tuple[list[_Joining], list[_Joining], int]:
        """Choose what begins, in the order of asking, and the prompt to read in parts.

        Returns:
            those whose prompts can be read now, those whose prompts were read, and the number of
            tokens of the first.
        """
        short, ready, spent = list[_Joining](), list[_Joining](), 0
        room = self._batch_size - len(self._live)
        waiting = sum(entry.left for entry in islice(self._waiting, self._join_together))
        if self._live and room < min(self._join_together, waiting):
            return short, ready, spent
        # Half of the tokens are for the prompt that is read in parts, if there is one.
        limit = self._prompt_tokens if self._in_parts is None else self._prompt_tokens // 2
        for entry in self._waiting:
            if room < 1:
                break
            length = len(self._reader.window(entry.request.prompt.ids))
            copies = min(room, entry.left)
            if entry.read is not None and entry.read.complete:
                ready.append((entry, copies))
            elif entry.read is None and spent + length <= limit:
                short.append((entry, copies))
                spent += length
            elif self._in_parts in (None, entry):
                self._in_parts = entry
            else:
                continue  # a prompt that is too long to be read beside the one in parts
            room -= copies
        return short, ready, spent

    def _read_part(self, entry: _Waiting, limit: int) -> None:
        """Read the next tokens of a long prompt; after its last, it joins as far as it can."""
        if entry.read is None:
            entry.read = self._reader.read([entry.request.prompt.ids], limit)
        else:
            self._reader.read_on(entry.read, limit)
        if entry.read.complete:
            self._in_parts = None
            self._begin_read(entry, min(self._batch_size - len(self._live), entry.left))

    def _begin_read(self, entry: _Waiting, copies: int) -> None:
        """Begin some continuations of a prompt that was read; it is kept for those that wait."""
        read = entry.read
        if read is not None and copies:
            self._begin(read if copies == entry.left else read.only(0), [(entry, copies)])

    def _begin(self, read: ReadPrompts, joining: Sequence[_Joining]) -> None:
        """Begin some continuations of each prompt, which were read together."""
        self._reader.join(read, [copies for _, copies in joining])
        for entry, copies in joining:
            samples = range(entry.begun, entry.begun + copies)
            given = (self._tokenizer, self._opening)
            self._live += [Draft(entry.request, sample, *given) for sample in samples]
            entry.begun += copies
            self._unbegun -= copies
            if not entry.left:
                self._waiting.remove(entry)

    def _leave(self, gone: Sequence[bool]) -> None:
        """Free the places of some live continuations."""
        rows = _remaining(gone)
        self._live = [self._live[row] for row in rows]
        self._reader.keep(rows)


def _remaining(ended: Sequence[bool]) -> list[int]:
    """Rows that go on, the last ones in the places of those that ended: few states move."""
    count = len(ended) - sum(ended)
    last = [row for row in range(count, len(ended)) if not ended[row]]
    return [last.pop() if ended[row] else row for row in range(count)]


def _choose(
    logits: Tensor, histories: Sequence[Sequence[int]], drafts: Sequence[Draft]
) -> list[tuple[int | None, float, TopTokens]]:
    """Choose the next token of each draft: token, log-probability and most probable tokens.

    `logits` are `[B, V]`. The token is None if none is allowed.
    """
    total = logits.logsumexp(-1)
    if not bool((total < torch.inf).all()):  # NaN is not
        raise NotFiniteError
    # Drafts of the same settings are one computation.
    groups: dict[Decoding, list[int]] = {}
    for row, draft in enumerate(drafts):
        groups.setdefault(draft.request.choosing, []).append(row)
    chosen = torch.empty(len(drafts), dtype=torch.int64, device=logits.device)
    exhausted: set[int] = set()
    for decoding, rows in groups.items():
        every = len(rows) == len(drafts)
        own = logits if every else logits[rows]
        past = [histories[row] for row in rows]
        tokens, none_left = _choose_alike(own, past, [drafts[row] for row in rows], decoding)
        chosen[slice(None) if every else rows] = tokens
        exhausted.update(row for row, none in zip(rows, none_left, strict=True) if none)
    # The log-probability is the model's own, before penalties and filters.
    logprobs: Tensor = logits.gather(-1, chosen[:, None])[:, 0] - total
    top = _most_probable(logits, total, [draft.request.top_logprobs for draft in drafts])
    columns = zip(chosen.tolist(), logprobs.tolist(), top, strict=True)
    return [
        (None if row in exhausted else token, logprob, best)
        for row, (token, logprob, best) in enumerate(columns)
    ]


def _choose_alike(
    logits: Tensor, histories: Sequence[Sequence[int]], drafts: Sequence[Draft], decoding: Decoding
) -> tuple[Tensor, list[bool]]:
    """Choose the next token of drafts that have the same settings, and say where none is left."""
    scores = penalize(logits, histories, decoding)
    places = [(len(draft.tokens), draft.limit, draft.request.stops) for draft in drafts]
    scores = bound_lengths(scores, places, decoding)
    # With n-grams forbidden, every token may be: such drafts end, whatever is chosen for them.
    exhausted = [False] * len(drafts)
    if decoding.no_repeat_ngram:
        none_left = (scores == NEVER).all(-1)
        exhausted = none_left.tolist()
        scores = torch.where(none_left[:, None], logits, scores)
    if decoding.greedy:
        return scores.argmax(-1), exhausted
    uniform = [draft.random.random() for draft in drafts]
    return draw(narrow(scores, decoding), uniform), exhausted


def _most_probable(logits: Tensor, total: Tensor, counts: Sequence[int]) -> list[TopTokens]:
    """The `counts[i]` most probable tokens after sequence i, with their log-probabilities.

    `logits` are `[B, V]`, `total` their logsumexp `[B]`. Nothing is computed for a count of 0.
    """
    top: list[TopTokens] = [()] * len(counts)
    rows = [row for row, count in enumerate(counts) if count]
    if rows:
        best = logits[rows].topk(min(max(counts), logits.shape[-1]))
        logprobs = (best.values - total[rows, None]).tolist()
        for row, tokens, values in zip(rows, best.indices.tolist(), logprobs, strict=True):
            top[row] = tuple(zip(tokens, values, strict=True))[: counts[row]]
    return top
