"""Sequences that a language model reads side by side, however long they become."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretune.models.language_model import LanguageModel


@dataclass
class ReadPrompts:
    """Prompts that no sequence continues yet, and the model's state after what was read of them."""

    prompts: list[Sequence[int]]
    windows: list[Sequence[int]]  # what the context holds of each
    lengths: list[int]  # how many tokens of each window were read
    logits: Tensor  # `[P, V]` float32, of the token after those
    state: Any

    @property
    def complete(self) -> bool:
        """Whether all windows were read to their ends."""
        return self.lengths == [len(window) for window in self.windows]

    def only(self, place: int) -> ReadPrompts:
        """A copy of one of the prompts; this one stays as it is."""
        state = copy.deepcopy(self.state)
        state.select([place])
        return ReadPrompts(
            [self.prompts[place]],
            [self.windows[place]],
            [self.lengths[place]],
            self.logits[[place]],
            state,
        )


class SequenceReader:
    """Sequences, the model's state after them, and logits of the next token of each.

    When a sequence fills the model's context, the state of its last half is computed anew, which
    makes room for as many tokens again.

    Args:
        model: on `device`.
        device: where the model is.
        context: entered whenever the model runs, e.g. for bf16.

    Attributes:
        histories: all tokens of each sequence, also those that left the context. For a model that
            writes another text than it reads, the tokens written.
        logits: `[B, V]` float32, of the token after each sequence.
    """

    def __init__(
        self,
        model: LanguageModel,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.histories: list[list[int]] = []
        self.logits = torch.empty(0, model.vocab_size, device=device)
        self._model, self._device, self._context = model, device, context
        self._state: Any = None
        self._held: list[int] = []  # tokens of each sequence in the state

    def window(self, prompt: Sequence[int]) -> Sequence[int]:
        """What is read of a prompt: its end, if it exceeds the context."""
        size = self._model.context_length
        return prompt if size is None else prompt[-size:]

    def read(self, prompts: Sequence[Sequence[int]], limit: int = sys.maxsize) -> ReadPrompts:
        """Read prompts beside the sequences, in one pass; `join` continues them.

        Args:
            prompts: token ids.
            limit: the largest number of tokens to read of each now; `read_on` reads the rest. A
                model that writes another text than it reads takes each prompt as a whole.
        """
        limit = limit if self._model.opening is None else sys.maxsize
        windows = [self.window(prompt) for prompt in prompts]
        begun = [window[:limit] for window in windows]
        logits, state = self._start(begun)
        return ReadPrompts(list(prompts), windows, list(map(len, begun)), logits, state)

    def read_on(self, prompts: ReadPrompts, limit: int) -> None:
        """Read at most `limit` more tokens of each prompt, none of which is complete."""
        pairs = list(zip(prompts.windows, prompts.lengths, strict=True))
        more = [window[length : length + limit] for window, length in pairs]
        with self._context():
            prompts.logits = self._model.follow(more, prompts.state).float()
        prompts.lengths = [length + len(new) for (_, length), new in zip(pairs, more, strict=True)]

    def join(self, prompts: ReadPrompts, copies: Sequence[int]) -> None:
        """Continue complete prompts, which this uses up, and append them to the sequences.

        Args:
            prompts: from `read`.
            copies: the number of sequences that continue each.
        """
        rows = [i for i, count in enumerate(copies) for _ in range(count)]
        prompts.state.select(rows)
        if self._held:
            self._state.extend(prompts.state)
        else:
            self._state = prompts.state
        self.logits = torch.cat([self.logits, prompts.logits[rows]])
        opening = self._model.opening
        begun = prompts.prompts if opening is None else [opening] * len(copies)
        self.histories += [list(begun[row]) for row in rows]
        self._held += [prompts.lengths[row] for row in rows]

    def add(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> None:
        """Start sequences and append them to the others.

        Args:
            prompts: token ids; only the end of a prompt that exceeds the context is read.
            copies: number of sequences that continue each prompt, which is read once.
        """
        self.join(self.read(prompts), copies)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; a sequence that is named twice is forked."""
        if list(rows) == list(range(len(self._held))):
            return
        self._state.select(rows)
        self.logits = self.logits[list(rows)]
        self.histories = [list(self.histories[row]) for row in rows]
        self._held = [self._held[row] for row in rows]

    def feed(self, tokens: Sequence[int]) -> None:
        """Read one more token of each sequence."""
        for history, token in zip(self.histories, tokens, strict=True):
            history.append(token)
        size = self._model.context_length
        full = [i for i, held in enumerate(self._held) if size is not None and held >= size]
        if not full or size is None:
            self.logits = self._step(tokens)
            self._held = [held + 1 for held in self._held]
            return
        # Full sequences start again from their last half; the others take a step. Then both are
        # put back in order.
        half = max(1, size // 2)
        logits, state = self._start([self.histories[i][-half:] for i in full])
        rest = [i for i in range(len(tokens)) if i not in set(full)]
        self._held = [half if i in set(full) else held + 1 for i, held in enumerate(self._held)]
        if rest:
            self._state.select(rest)
            others = self._step([tokens[i] for i in rest])
            self._state.extend(state)
            order = [(rest + full).index(i) for i in range(len(tokens))]
            self._state.select(order)
            self.logits = torch.cat([others, logits])[order]
        else:
            self._state, self.logits = state, logits

    def _start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        with self._context():
            logits, state = self._model.start(prompts)
        return logits.float(), state

    def _step(self, tokens: Sequence[int]) -> Tensor:
        with self._context():
            return self._model.step(torch.tensor(tokens, device=self._device), self._state).float()
