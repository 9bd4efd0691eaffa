"""Filling gaps: the tokens that fit each `[MASK]` of a text, with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pretune.data.batch import PackedBatch
from pretune.data.masking import NOT_MASKED
from pretune.errors import DataError, RunError
from pretune.inference.predict import Predictor
from pretune.tasks.masked_lm.mask_lm import MaskLm
from pretune.tasks.masked_lm.masked_sequences import MASKED

#: A gap's tokens, best first, each with its probability: `(token, score)`.
_Fitting = list[tuple[int, float]]


class MaskFiller:
    """Fills gaps as transformers' `fill-mask` pipeline does.

    Args:
        predictor: of a model that was trained by `mask_lm`.

    Raises:
        RunError: the model was trained for something else.
    """

    def __init__(self, predictor: Predictor) -> None:
        if not isinstance(predictor.task, MaskLm):
            raise RunError(
                f"this model was trained for the task {predictor.task.name}: it fills no gaps",
                "Ask one that was trained by mask_lm, such as a BERT.",
            )
        self._predictor = predictor
        self._tokenizer = predictor.bundle.tokenizer

    def fill(
        self, texts: Sequence[str], *, top_k: int = 5, targets: Sequence[str | int] | None = None
    ) -> list[list[list[dict[str, Any]]]]:
        """Return what fits the gaps of texts.

        Args:
            texts: each with at least one `[MASK]`.
            top_k: how many tokens to return for each gap.
            targets: choose among these words or token ids only; of a word that is no token, the
                first token is taken. None: the whole vocabulary.

        Returns:
            for each text and each gap the tokens, best first: `score` (the probability in the whole
            vocabulary), `token` (its id), `token_str`, and `sequence` (the text with it).

        Raises:
            DataError: a text has no gap, or a target is not in the vocabulary.
        """
        among = None if targets is None else list(dict.fromkeys(map(self._target, targets)))

        def read(logits: Tensor, batch: PackedBatch) -> list[list[dict[str, Any]]]:
            return self._filled(_fitting(logits, top_k, among), batch)

        answers = self._predictor.outputs(self._predictor.records(texts, "inputs"), read)
        return [gaps for (gaps,) in answers]

    def _target(self, target: str | int) -> int:
        """Return the token id of a target."""
        if isinstance(target, int):
            return target
        known: int | None = self._tokenizer.engine.token_to_id(target)
        if known is None:
            (encoded,) = self._tokenizer.encode_bare([target])
            known = encoded.ids[0] if encoded.ids else None
        if known is None or known == self._tokenizer.special_id("unk_token"):
            raise DataError(f"target {target!r} is not in the model's vocabulary")
        return known

    def _filled(self, fitting: list[_Fitting], batch: PackedBatch) -> list[Any]:
        """Return for each sequence of a batch its gaps, each with the texts that fill it."""
        ids, masked = batch.tokens.tolist(), (batch.targets[MASKED] != NOT_MASKED).tolist()
        of_sequence, start, gaps = [], 0, iter(fitting)
        for length in batch.layout.lengths:
            sequence = ids[start : start + length]
            places = [place for place in range(length) if masked[start + place]]
            # Further gaps stay visible in the text; of a single one no special token is shown.
            alone = len(places) == 1
            of_sequence.append(
                [
                    [self._entry(sequence, place, *own, alone=alone) for own in next(gaps)]
                    for place in places
                ]
            )
            start += length
        return of_sequence

    def _entry(
        self, sequence: list[int], place: int, token: int, score: float, *, alone: bool
    ) -> dict[str, Any]:
        filled = [*sequence[:place], token, *sequence[place + 1 :]]
        return {
            "score": score,
            "token": token,
            "token_str": self._tokenizer.text_of(token),
            "sequence": self._tokenizer.decode(filled, skip_special=alone),
        }


def _fitting(logits: Tensor, top_k: int, among: list[int] | None) -> list[_Fitting]:
    """Return the likeliest tokens of each gap, from logits `[gaps, vocab]`."""
    probabilities = logits.float().softmax(-1)
    if among is not None:
        probabilities = probabilities[:, among]
    scores, places = probabilities.topk(min(top_k, probabilities.shape[-1]))
    return [
        [
            (place if among is None else among[place], score)
            for place, score in zip(*row, strict=True)
        ]
        for row in zip(places.tolist(), scores.tolist(), strict=True)
    ]
