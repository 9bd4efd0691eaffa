"""A language model with the sequences that it is reading, however long they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pretune.models.language_model import LanguageModel


class Reader:
    """Sequences side by side, and what the model says may come next in each.

    A sequence that fills the model's context goes on from its last half: the state of that half is
    computed anew, and has room for as many tokens again.

    Args:
        model: on `device`.
        device: where it is.
        context: entered whenever the model runs, e.g. for bf16.

    Attributes:
        histories: all tokens of each sequence, those out of sight too; of a model that writes
            another text than it reads, those of that one.
        logits: `[B, V]` float32 of the token after each.
    """

    def __init__(
        self,
        model: LanguageModel,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.histories: list[list[int]] = []
        self.logits = torch.empty(0, model.vocab_size, device=device)
        self._model = model
        self._device = device
        self._context = context
        self._state: Any = None
        self._held: list[int] = []  # how many tokens the state has of each

    def add(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> None:
        """Begin sequences, after those that are there.

        Args:
            prompts: token ids; of a prompt longer than the context, its end is read.
            copies: how many sequences shall go on from each prompt, which is read once.
        """
        most = self._model.context_length
        windows = [prompt if most is None else prompt[-most:] for prompt in prompts]
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
        """Go on with these sequences, in this order; one that is named twice is forked."""
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
        most = self._model.context_length
        full = [i for i, held in enumerate(self._held) if most is not None and held >= most]
        if not full or most is None:
            self.logits = self._step(tokens)
            self._held = [held + 1 for held in self._held]
            return
        half = max(1, most // 2)
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
