"""Sequences that a language model reads side by side, however long they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pretune.models.language_model import LanguageModel


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

    def add(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> None:
        """Start sequences and append them to the others.

        Args:
            prompts: token ids; only the end of a prompt that exceeds the context is read.
            copies: number of sequences that continue each prompt, which is read once.
        """
        size = self._model.context_length
        windows = [prompt if size is None else prompt[-size:] for prompt in prompts]
        logits, state = self._start(windows)
        rows = [i for i, count in enumerate(copies) for _ in range(count)]
        state.select(rows)
        if self._held:
            self._state.extend(state)
        else:
            self._state = state
        self.logits = torch.cat([self.logits, logits[rows]])
        begun = prompts if self._model.opening is None else [self._model.opening] * len(prompts)
        self.histories += [list(begun[row]) for row in rows]
        self._held += [len(windows[row]) for row in rows]

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
