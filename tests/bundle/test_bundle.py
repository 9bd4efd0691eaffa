from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pretune.bundle.bundle import Bundle, load, save
from pretune.checkpoints.manifest import write_manifest
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.tagging.tag import Tagger, TagOptions


@pytest.fixture
def saved(tiny_folder: Path, tmp_path: Path) -> tuple[Bundle, Path]:
    torch.manual_seed(0)
    bundle = load(
        tiny_folder, task=Classify(ClassifyOptions(max_length=16), ["no", "yes", "maybe"])
    )
    folder = tmp_path / "saved"
    folder.mkdir()
    save(bundle, folder)
    return bundle, folder


BATCH = PackedBatch.of([[2, 5, 6, 3], [2, 7, 3]], segments=[[0] * 4, [0] * 3])


def test_a_new_head_is_said_to_be_new(tiny_folder: Path) -> None:
    bundle = load(tiny_folder, task=Classify(ClassifyOptions(max_length=16), ["a", "b"]))
    assert bundle.report is not None
    assert set(bundle.report.missing) == {"classifier.weight", "classifier.bias"}


def test_weights_of_a_size_are_initialised_and_not_loaded() -> None:
    report = str(load("bert-tiny", config={"num_hidden_layers": 1}).report)
    assert report.startswith("initialised random weights of the size bert-tiny")
    assert "loaded 0" not in report


@pytest.mark.parametrize("scheme", ["bio", "iob1"])
def test_a_head_for_the_same_tags_is_kept_whatever_the_data_spell(
    scheme: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """In IOB1 an entity begins with I, and with B only right after another of its type."""
    words = ["ada", "met", "al", "bo"]
    bio = Records([{"tokens": words, "ner_tags": ["B-PER", "O", "B-PER", "B-PER"]}], "bio.jsonl")
    iob1 = Records([{"tokens": words, "ner_tags": ["I-PER", "O", "I-PER", "B-PER"]}], "iob1.jsonl")
    trained, wanted = (Tagger(TagOptions.of_length(16, "bio")) for _ in range(2))
    trained.fit(bio)
    wanted.fit({"bio": bio, "iob1": iob1}[scheme])
    assert (wanted.data_scheme, wanted.labels) == (scheme, trained.labels)
    bundle = load(tiny_folder, task=trained)
    save(bundle, tmp_path)
    again = load(tmp_path, task=wanted)
    assert again.report is not None
    assert again.report.missing == ()
    head = again.model.get_submodule("classifier").state_dict()
    for name, weight in bundle.model.get_submodule("classifier").state_dict().items():
        assert torch.equal(head[name], weight)


def test_a_head_for_other_tags_is_new(tiny_folder: Path, tmp_path: Path) -> None:
    save(
        load(tiny_folder, task=Tagger(TagOptions.of_length(16, "bio"), ["O", "B-A", "I-A"])),
        tmp_path,
    )
    other = Tagger(TagOptions.of_length(16, "bio"), ["O", "B-B", "I-B"])
    report = load(tmp_path, task=other).report
    assert report is not None
    assert set(report.missing) == {"classifier.weight", "classifier.bias"}


def test_what_is_saved_loads_as_it_was(saved: tuple[Bundle, Path]) -> None:
    bundle, folder = saved
    again = load(folder)
    assert again.task is not None
    assert again.task.state() == {"labels": ["no", "yes", "maybe"]}
    assert again.task.options == bundle.task.options  # type: ignore[union-attr]
    assert again.report is not None
    assert again.report.missing == ()
    with torch.no_grad():
        assert torch.equal(again.model.eval()(BATCH), bundle.model.eval()(BATCH))


def test_a_loaded_model_answers_without_dropout(saved: tuple[Bundle, Path]) -> None:
    model = load(saved[1], dropout=0.5).model
    with torch.no_grad():
        assert torch.equal(model(BATCH), model(BATCH))


def test_transformers_opens_it_and_gives_the_same_logits(saved: tuple[Bundle, Path]) -> None:
    bundle, folder = saved
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["good film", "the bad, unaffable film"]
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    encoded = bundle.tokenizer.encode(texts)
    batch = PackedBatch.of([e.ids for e in encoded], segments=[e.segments for e in encoded])
    with torch.no_grad():
        difference = theirs(**padded).logits - bundle.model.eval()(batch)
    assert difference.abs().max() < 1e-5
    assert theirs.config.id2label == {0: "no", 1: "yes", 2: "maybe"}


def test_other_labels_get_a_new_head(saved: tuple[Bundle, Path]) -> None:
    bundle, folder = saved
    other = load(folder, task=Classify(ClassifyOptions(max_length=16), ["a", "b", "c"]))
    assert other.report is not None
    assert "classifier.weight" in other.report.missing
    ours, theirs = (b.model.state_dict()["classifier.weight"] for b in (bundle, other))
    assert not torch.equal(ours, theirs)


def test_a_classifier_without_its_head_is_refused(saved: tuple[Bundle, Path]) -> None:
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"], weights["classifier.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.bias, classifier\.weight"):
        load(folder)


def test_more_tokens_than_embeddings_are_refused(saved: tuple[Bundle, Path]) -> None:
    _, folder = saved
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["surplus"] = 10**4
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CheckpointError, match="10,001 tokens"):
        load(folder)


def test_longer_texts_than_positions_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"64 positions.*max_length=128"):
        load(tiny_folder, task=Classify(ClassifyOptions(), ["a", "b"]))


@pytest.mark.parametrize("text", ["{", "[]", '{"options": {"name": "classify"}}', '{"options": 1}'])
def test_a_damaged_task_file_is_an_error(saved: tuple[Bundle, Path], text: str) -> None:
    _, folder = saved
    (folder / "pretune.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"pretune\.json"):
        load(folder)


def test_dropout_can_be_changed(tiny_folder: Path) -> None:
    bundle = load(tiny_folder, dropout=0.5)
    assert bundle.backbone.config.hidden_dropout_prob == 0.5


def test_a_checkpoint_of_a_run_is_compared_with_its_manifest(
    saved: tuple[Bundle, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved[1], tmp_path / "checkpoint"))
    (folder / "trainer.json").write_text("{}", encoding="utf-8")
    write_manifest(folder)
    assert load(folder).task is not None
    (folder / "trainer.json").unlink()  # the model can do without the state of its run
    assert load(folder).task is not None
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1  # one bit of a weight: still a finite number
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged") as caught:
        load(folder)
    assert "RUN/last" in str(caught.value)
