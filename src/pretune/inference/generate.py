"""Text generation: from prompts to continuations, whole or piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Self

from pretune.bundle.bundle import Bundle
from pretune.decoding.continuations import Generation, Prompt, TextChunk
from pretune.decoding.decoding import Decoding
from pretune.decoding.live_batch import LiveBatch
from pretune.decoding.writer import Writer
from pretune.inference.prompts import Prompted, check_stop_tokens, stop_tokens_of, template_of
from pretune.inference.runtime import writing_context
from pretune.models.language_model import LanguageModel
from pretune.tasks.dialogue.layouts import TemplateLayout
from pretune.tokenizers.tokenizer import Tokenizer


class TextGenerator(Prompted):
    """A language model that writes continuations."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 16,  # continuations at a time; changes memory and speed only
        template: TemplateLayout | None = None,  # makes texts given as prompts messages of the user
        stop_texts: Sequence[str] = (),  # end a continuation and are not part of it
        **options: Any,  # of `Prompted`
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self._template = template
        self._writer = Writer(
            model,
            tokenizer,
            device=self.device,
            batch_size=batch_size,
            stop_tokens=self._stop_tokens,
            stop_texts=stop_texts,
            context=partial(writing_context, self.device, self._precision),
        )

    @classmethod
    def of(cls, bundle: Bundle, **options: Any) -> Self:
        """Take model and tokenizer from a bundle; see `Prompted.of`.

        A model that was trained with a chat template gets its prompts laid out by it.
        """
        template = options.setdefault("template", template_of(bundle))
        if template is not None:
            ends = template.ends()
            options.setdefault("stop_tokens", stop_tokens_of(bundle) | ends.tokens)
            options.setdefault("stop_texts", ends.texts)
        return super().of(bundle, **options)

    def prompt(self, given: str | Sequence[int], number: int = 1) -> list[int]:
        """Return the tokens of a prompt; see `Prompted.prompt`.

        Of a message that fills more than half the model's context, only the end is kept.
        """
        plain = super().prompt(given, number)
        if self._template is None or not isinstance(given, str):
            return plain
        room = self.model.context_length
        return self._template.history([given], sys.maxsize if room is None else room // 2).ids

    def generate(
        self, prompts: Sequence[str | Sequence[int]], decoding: Decoding | None = None
    ) -> list[Generation]:
        """Return all continuations, grouped by prompt in the order of the prompts."""
        return self._writer.write(*self._checked(prompts, decoding))

    def stream(
        self, prompts: Sequence[str | Sequence[int]], decoding: Decoding | None = None
    ) -> Iterator[TextChunk]:
        """Yield continuations piece by piece while they are written, several at a time.

        Raises:
            PretuneError: a prompt or a stop token cannot be used; names it.
        """
        yield from self._writer.stream(*self._checked(prompts, decoding))

    def live_batch(self, **options: Any) -> LiveBatch:
        """A batch that prompts join while it runs, by `ask`; its `step` writes a token of each.

        Args:
            options: as for `Writer.live_batch`.
        """
        return self._writer.live_batch(**options)

    def ask(
        self,
        batch: LiveBatch,
        prompt: str | Sequence[int],
        decoding: Decoding | None = None,
        **options: Any,
    ) -> int:
        """Let a batch continue a prompt, and return the number of the prompt's tokens.

        Args:
            batch: from `live_batch`.
            prompt: a text, or token ids.
            decoding: how to continue it; a batch takes no beam searches.
            options: `tag`, which comes back with each piece, and `top_logprobs`; see `LiveBatch`.

        Raises:
            PretuneError: the prompt, a stop token or the decoding cannot be used; names it.
        """
        (checked,), decoding = self._checked([prompt], decoding)
        self._writer.ask(batch, checked, decoding, **options)
        return len(checked.ids)

    def _checked(
        self, prompts: Sequence[str | Sequence[int]], decoding: Decoding | None
    ) -> tuple[list[Prompt], Decoding]:
        decoding = decoding or Decoding()
        if decoding.stop_tokens is not None:
            check_stop_tokens(frozenset(decoding.stop_tokens), self.model.vocab_size)
        checked = []
        for number, given in enumerate(prompts, start=1):
            ids = self.prompt(given, number)
            checked.append(Prompt(given if isinstance(given, str) else tuple(given), ids))
        return checked, decoding
