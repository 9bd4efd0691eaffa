"""One text or a pair, read as a whole: what `classify`, `multilabel` and `regress` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field
from tokenizers.processors import TemplateProcessing

from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError
from pretune.tasks.base import TaskOptions
from pretune.tasks.stated import published_labels
from pretune.tokenizers.tokenizer import Encoded, Tokenizer

#: transformers' names of what a sequence classifier is trained for.
CLASSES, LABELS, SCORE = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)


class SentenceOptions(TaskOptions):
    """Options of every task that reads one text or a pair as a whole."""

    pair: bool = Field(
        False,
        description="Two texts a record (columns sentence1, sentence2) instead of one (text).",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Before the last layer. Default: the model's own."
    )


def sentence_columns(options: SentenceOptions) -> dict[str, str]:
    """`text`, or `sentence1` and `sentence2`, with what they mean."""
    if options.pair:
        return {"sentence1": "the first text", "sentence2": "the second text"}
    return {"text": "the text"}


def encode_sentences(
    options: SentenceOptions, records: Records, rows: range, tokenizer: Tokenizer
) -> Iterator[tuple[int, Encoded]]:
    """Each row with its text or pair in tokens: `[CLS] text [SEP]`, `[CLS] a [SEP] b [SEP]`.

    A decoder's tokenizer puts nothing around a text: there it is `text`, and `a END b`.

    Raises:
        DataError: a record has no such text, or one that comes to no token at all.
    """
    columns = sentence_columns(options)
    texts = [[records.text(row, column) for row in rows] for column in columns]
    encoded = tokenizer.encode(
        texts[0], texts[1] if options.pair else None, max_length=options.max_length
    )
    for row, one in zip(rows, encoded, strict=True):
        if not one.ids:
            raise DataError(
                f"{records.where(row, next(iter(columns)))}: not a single token in the text",
                "Remove the record: this model's tokenizer puts nothing around an empty text.",
            )
        yield row, one


def separate_pairs(options: SentenceOptions, tokenizer: Tokenizer) -> None:
    """See that the two texts of a pair have a token between them, here and in what is saved.

    A decoder's tokenizer just joins them, and `a b` + `c` would be `a` + `b c`. What ends a text
    comes between, as in GPT's own pairs (Radford et al. 2018, section 3.3: a delimiter token).

    Raises:
        CheckpointError: the tokenizer has no special token to put there.
    """
    if not options.pair or tokenizer.engine.num_special_tokens_to_add(True):
        return
    for name in ("sep_token", "eos_token"):
        token, number = tokenizer.special.get(name), tokenizer.special_id(name)
        if token is not None and number is not None:
            tokenizer.engine.post_processor = TemplateProcessing(
                single="$A", pair=["$A", token, "$B:1"], special_tokens=[(token, number)]
            )
            return
    raise CheckpointError(
        "task.pair: the tokenizer has no special token that could stand between the two texts",
        "Use one with a sep_token or an eos_token, such as `pretune tokenizer train` makes.",
    )


def published_kind(config: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """What a transformers `...ForSequenceClassification` was trained for, and its labels.

    As in transformers: what `problem_type` says; else one output is a score, several are classes.

    Args:
        config: the contents of `config.json`.

    Returns:
        `CLASSES`, `LABELS` or `SCORE` with the names of its outputs; None for another head.

    Raises:
        CheckpointError: labels that make no sense.
    """
    architectures = config.get("architectures") or [""]
    if not str(architectures[0]).endswith("ForSequenceClassification"):
        return None
    labels = published_labels(config)
    said = config.get("problem_type")
    if said == SCORE and len(labels) > 1:
        raise CheckpointError(
            f"config.json: problem_type is {SCORE}, with {len(labels)} outputs",
            "Only one score a text is supported.",
        )
    kind = said if said in (CLASSES, LABELS, SCORE) else SCORE if len(labels) == 1 else CLASSES
    return str(kind), labels


def label_entries(labels: list[str], kind: str) -> dict[str, Any]:
    """`id2label`, `label2id` and `problem_type` of `config.json`."""
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": kind,
    }
