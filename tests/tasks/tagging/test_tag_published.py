"""Taggers that others have published: whatever their labels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForTokenClassification

import pretune
from pretune.bundle.bundle import Bundle, load
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.evaluation.examine import examine
from pretune.tasks.features import featurize
from pretune.tasks.tagging.schemes import labels_of, scheme_of
from pretune.tasks.tagging.tag import Tagger


def published(names: list[str], tiny_folder: Path, folder: Path) -> Bundle:
    """What transformers saves of a model with these labels."""
    torch.manual_seed(0)
    model = BertForTokenClassification.from_pretrained(
        tiny_folder, num_labels=len(names), id2label=dict(enumerate(names))
    )
    with torch.no_grad():
        model.classifier.weight.normal_()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((tiny_folder / "vocab.txt").read_bytes())
    return load(folder)


def tagged(words: str, tags: str) -> Records:
    row = {"tokens": words.split(), "ner_tags": tags.split()}
    return Records([row], "x.jsonl", [1], ("tokens", "ner_tags"))


def test_what_transformers_saves_tags(tiny_folder: Path, tmp_path: Path) -> None:
    names = ["O", "S-A", "B-A", "I-A", "E-A"]
    bundle = published(names, tiny_folder, tmp_path)
    assert isinstance(bundle.task, Tagger)
    assert (bundle.task.labels, bundle.task.options.scheme) == (names, "bioes")
    (found,) = pretune.predict(bundle, ["the good film"])
    assert found.to_dict()["entities"] is not None


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (["O", "B-A", "I-A", "B-B", "I-B"], "bio"),
        (["O", "B-A", "I-A", "B-B"], "bio"),  # all of that type were single words
        (["O", "B-A", "I-A", "[SEP]", "X"], "bio"),
        (["O", "B-A", "I-A", "I-B"], "iob1"),  # none of that type touched another
        (["O", "I-A", "I-B"], "iob1"),
        (["O", "LOC", "PER", "MISC"], "iob1"),
        (["LABEL_0", "LABEL_1"], "iob1"),
        *((labels_of(["LOC"], scheme), scheme) for scheme in ("bioes", "bilou", "bmes")),
    ],
)
def test_the_scheme_of_labels(labels: list[str], scheme: str) -> None:
    assert scheme_of(labels) == scheme
    config = {"id2label": {str(i): label for i, label in enumerate(labels)}}
    task = Tagger.from_config({"architectures": ["BertForTokenClassification"], **config})
    assert task is not None
    assert (task.labels, task.options.scheme) == (labels, scheme)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["O", "I-LOC", "I-PER"], "O I-PER I-PER O I-LOC"),
        (["PER", "O", "LOC"], "O PER PER O LOC"),
        (["O", "B-LOC", "I-LOC", "I-PER"], "O I-PER I-PER O I-LOC"),
        (["O", "B-LOC", "B-PER", "I-PER"], "O B-PER I-PER O B-LOC"),
        (["O", *(f"{one}-{kind}" for kind in ("PER", "LOC") for one in "BIE")], None),
    ],
)
def test_any_labels_can_be_evaluated(
    names: list[str], expected: str | None, tiny_folder: Path, tmp_path: Path
) -> None:
    bundle = published(names, tiny_folder, tmp_path)
    records = tagged("the good film bad ab", "O B-PER I-PER O B-LOC")
    assert bundle.task is not None
    found = featurize(bundle.task, records, bundle.tokenizer, evaluation=True)
    labels = found.targets["label"][found.targets["word"] >= 0]
    told = [names[i] for i in labels]
    assert told == (expected or "O B-PER E-PER O B-LOC").split()
    metrics = pretune.evaluate(bundle, records).metrics
    (answer,) = pretune.predict(bundle, records.rows)
    mine: Any = answer
    right = {("PER", 1, 3), ("LOC", 4, 5)}
    guess = {(e.type, e.start, e.end) for e in mine.entities}
    assert metrics["f1"] == pytest.approx(2 * len(right & guess) / (len(right) + len(guess)))
    assert metrics["accuracy"] == pytest.approx(
        sum(a == b for a, b in zip(told, mine.tags, strict=True)) / 5
    )
    examined = examine(bundle, records, device="cpu")
    sums = examined.task.figures(examined.sums.sum(0))
    for name in ("f1", "accuracy", "loss"):
        assert float(sums[name]) == pytest.approx(metrics[name], rel=1e-4)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["O", "B-LOC", "B-PER"], r"no tag 'I-PER'.*\n?.*B-LOC, B-PER"),
        (["O", "I-LOC", "I-PRE"], r"unknown type 'PER'.*\n?.*'?PRE'?"),
        (["B-PER", "I-PER"], "no tag 'O'"),
    ],
)
def test_what_a_model_cannot_say_is_named(
    names: list[str], said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    bundle = published(names, tiny_folder, tmp_path)
    assert bundle.task is not None
    with pytest.raises(DataError, match=f"(?s)x\\.jsonl, line 1.*{said}"):
        featurize(
            bundle.task, tagged("the good film", "O B-PER I-PER"), bundle.tokenizer, evaluation=True
        )
