"""Text generation: prompts in, continuations out, as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from pretune.decoding import Decoding, Generation, Piece, Writer
from pretune.decoding.writer import Prompt
from pretune.infer.prompts import Prompted, check_stop_tokens
from pretune.models import LanguageModel
from pretune.text import Tokenizer
from pretune.training import precision_context


class TextGenerator(Prompted):
    """A model that writes.

    Args:
        model: a `LanguageModel`.
        tokenizer: of the model.
        batch_size: continuations at a time; changes memory and speed only.
        options: as `Prompted`'s.

    Raises:
        RunError: there is no such device.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, batch_size: int = 16, **options: Any
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self._writer = Writer(
            model,
            tokenizer,
            device=self.device,
            batch_size=batch_size,
            stop_tokens=self._stop_tokens,
            context=partial(precision_context, self.device, self._precision),
        )

    def generate(
        self, prompts: Sequence[str | Sequence[int]], decoding: Decoding | None = None
    ) -> list[Generation]:
        """All continuations: those of the first prompt, those of the second, ...

        Raises:
            PretuneError: as `stream`.
        """
        return self._writer.write(*self._checked(prompts, decoding))

    def stream(
        self, prompts: Sequence[str | Sequence[int]], decoding: Decoding | None = None
    ) -> Iterator[Piece]:
        """Continuations piece by piece, as they come; those of several prompts take turns.

        Args:
            prompts: texts, or token ids.
            decoding: how; default: `Decoding()`.

        Raises:
            PretuneError: a prompt or a stop token cannot be used; names it.
        """
        yield from self._writer.stream(*self._checked(prompts, decoding))

    def _checked(
        self, prompts: Sequence[str | Sequence[int]], decoding: Decoding | None
    ) -> tuple[list[Prompt], Decoding]:
        decoding = decoding or Decoding()
        if decoding.stop_tokens is not None:
            check_stop_tokens(frozenset(decoding.stop_tokens), self.model.vocab_size)
        found = []
        for number, given in enumerate(prompts, start=1):
            ids = self.prompt(given, number)
            found.append(Prompt(given if isinstance(given, str) else tuple(given), ids))
        return found, decoding
