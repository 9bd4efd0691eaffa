"""Prompts as tokens, and the tokens at which a text begins and ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Self, cast

from torch import nn

from pretune.bundle.bundle import Bundle
from pretune.errors import DataError, PretuneError, RunError, with_article
from pretune.inference.runtime import check_precision, choose_device
from pretune.models.families import build_head
from pretune.models.language_model import LanguageModel
from pretune.models.large_pages import settle
from pretune.tasks.dialogue.dialogue import Instruct
from pretune.tasks.dialogue.layouts import TemplateLayout
from pretune.text.decode import SURROGATE
from pretune.tokenizers.tokenizer import Tokenizer


def language_model(bundle: Bundle) -> LanguageModel:
    """Return a bundle's model if it can generate text."""
    model = bundle.model
    if bundle.task is None and bundle.backbone.causal:
        # A checkpoint of a language model without a task of ours: its output layer is its table.
        model = build_head(bundle.backbone, "causal_lm")
    where = bundle.report.source if bundle.report else "this model"
    if getattr(model, "opening", None) is not None:
        raise RunError(
            f"{where}: {with_article(bundle.family.model_type)} model translates; it does "
            "not go on from a prompt",
            "Ask it with: pretune predict RUN TEXT",
        )
    if hasattr(model, "start") and hasattr(model, "step"):
        return cast(LanguageModel, model)
    trained = "" if bundle.task is None else f", trained for the task {bundle.task.name},"
    raise RunError(
        f"{where}: {with_article(bundle.family.model_type)} model{trained} cannot generate text",
        "Name a language model that reads from left to right, such as a GPT-2.",
    )


def template_of(bundle: Bundle, *, always: bool = False) -> TemplateLayout | None:
    """Return the chat template that a model was trained with, or None."""
    if isinstance(bundle.task, Instruct):
        return bundle.task.layout(bundle.tokenizer)
    return TemplateLayout.of(bundle.tokenizer) if always else None


def token_named(tokenizer: Tokenizer, name: str) -> int | None:
    """Return the id of a special token, also if only `tokenizer_config.json` names it."""
    token = tokenizer.special.get(name, tokenizer.settings.get(name))
    if isinstance(token, dict):  # the long form: {"content": "</s>", "lstrip": false, ...}
        token = token.get("content")
    if not isinstance(token, str):
        return None
    number: int | None = tokenizer.engine.token_to_id(token)
    return number


def stop_tokens_of(bundle: Bundle) -> frozenset[int]:
    """Return the tokens that end a text of the model.

    That is the tokenizer's end-of-text token, else the one of `config.json`. A GPT-2 with a BERT
    vocabulary also stops at `[SEP]`, which ends a text, and at `[CLS]`, which begins the next.
    """
    names = ("eos_token", "sep_token", "cls_token")
    ids = {token_named(bundle.tokenizer, name) for name in names}
    if token_named(bundle.tokenizer, "eos_token") is None:
        own = getattr(bundle.backbone.config, "eos_token_id", None)
        ids |= {*own} if isinstance(own, list | tuple) else {own}
    return frozenset(_within(ids, bundle.tokenizer.vocab_size))


def start_token_of(bundle: Bundle) -> int | None:
    """Return the token that stands for an empty prompt, if the model has one."""
    config = bundle.backbone.config
    bos, eos = (token_named(bundle.tokenizer, name) for name in ("bos_token", "eos_token"))
    candidates = [bos, getattr(config, "bos_token_id", None), eos]
    return next(iter(_within(candidates, bundle.tokenizer.vocab_size)), None)


def _within(ids: Collection[int | None], vocab_size: int) -> list[int]:
    return [i for i in ids if isinstance(i, int) and 0 <= i < vocab_size]


def check_stop_tokens(stops: Collection[int], vocab_size: int) -> None:
    """Check that the model has these tokens."""
    for token in stops:
        if not isinstance(token, int) or not 0 <= token < vocab_size:
            raise PretuneError(f"stop_tokens: {token!r} is not one of the model's {vocab_size:,}")


class Prompted:
    """A language model with its tokenizer on a device: what writing and scoring have in common."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        stop_tokens: Collection[int] = (),  # may be added to every text by the tokenizer
        start_token: int | None = None,  # stands for an empty text
        device: str = "auto",  # `auto`, `cpu`, `cuda`, ...
        precision: str = "auto",  # `auto`, `float32`, `bf16`, or `int8` on a CPU
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = choose_device(device)
        check_precision(precision, self.device)
        if isinstance(model, nn.Module):
            model.to(self.device).eval()
            settle(model)
        self._stop_tokens = frozenset(stop_tokens)
        self._start_token = start_token
        self._precision = precision

    @classmethod
    def of(cls, bundle: Bundle, **options: Any) -> Self:
        """Take model, tokenizer and special tokens from a bundle."""
        model = language_model(bundle)
        options.setdefault("stop_tokens", stop_tokens_of(bundle))
        options.setdefault("start_token", start_token_of(bundle))
        return cls(model, bundle.tokenizer, **options)

    def prompt(self, given: str | Sequence[int], number: int = 1) -> list[int]:
        """Return the tokens of a prompt, without the end that a tokenizer adds to every text.

        Args:
            given: a text, or token ids.
            number: the number of the prompt (1-based), for errors.

        Raises:
            DataError: the prompt is empty and the model has no beginning-of-text token, the text is
                not valid Unicode, or the model does not have a token id.
        """
        if not isinstance(given, str):
            ids, size = list(given), self.model.vocab_size
            wrong = next((i for i in ids if not 0 <= i < size), None)
            if wrong is not None:
                raise DataError(
                    f"prompt {number}: token {wrong} is not one of the model's {size:,}"
                )
        else:
            if SURROGATE.search(given) is not None:
                raise DataError(f"prompt {number}: not valid Unicode", "Give it in UTF-8.")
            (encoded,) = self.tokenizer.encode([given])
            ids, offsets = encoded.ids, encoded.offsets
            # Only what the tokenizer added is at (0, 0): a [SEP] that a person typed stays.
            while len(ids) > 1 and ids[-1] in self._stop_tokens and offsets[len(ids) - 1] == (0, 0):
                ids = ids[:-1]
        if not ids and self._start_token is not None:
            ids = [self._start_token]
        if not ids:
            raise DataError(
                f"prompt {number}: empty, and the model has no beginning-of-text token",
                "Give it a first word.",
            )
        return ids
