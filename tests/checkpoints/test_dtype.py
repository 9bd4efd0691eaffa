"""Weights in half precision: upcast by default, kept or chosen on request, saved as they are."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pretune
from pretune.bundle.bundle import load, save
from pretune.bundle.convert import convert
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
IDS = [[2, 5, 9, 33, 3], [2, 7, 3]]
#: How far two implementations may be apart: some roundings of numbers of about 3.
TOLERANCE = {"float16": 0.02, "bfloat16": 0.12, "float32": 1e-5}


def their_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(torch.tensor([ids])).logits for ids in IDS]).float()


def our_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(PackedBatch.of(IDS)).float()


@pytest.fixture(scope="module")
def classifier(tiny_folder: Path, tmp_path_factory) -> Path:
    """A classifier in float32, as transformers saves it."""
    folder = tmp_path_factory.mktemp("dtype") / "float32"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = transformers.AutoModelForSequenceClassification
        model = kind.from_pretrained(tiny_folder, num_labels=3)
        torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    shutil.copy(tiny_folder / "vocab.txt", folder)
    return folder


@pytest.fixture(params=HALVES)
def half(request, classifier: Path, tmp_path: Path) -> tuple[str, Path]:
    """The same in half precision, as transformers saves it."""
    kind = transformers.AutoModelForSequenceClassification
    kind.from_pretrained(classifier, dtype=HALVES[request.param]).save_pretrained(tmp_path / "half")
    shutil.copy(classifier / "vocab.txt", tmp_path / "half")
    return request.param, tmp_path / "half"


def dtypes(model: torch.nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in model.state_dict().values()}


def test_upcast_by_default(half) -> None:
    _, folder = half
    bundle = load(folder)
    assert dtypes(bundle.model) == {torch.float32}
    assert f"{bundle.report.loaded} of them converted to float32" in str(bundle.report)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="float32"
    )
    assert (our_logits(bundle.model) - their_logits(theirs)).abs().max() < TOLERANCE["float32"]


@pytest.mark.parametrize("asked", ["auto", "same"])
def test_kept_on_request(half, asked: str) -> None:
    name, folder = half
    bundle = load(folder, dtype="auto" if asked == "auto" else name)
    assert dtypes(bundle.model) == {HALVES[name]}
    assert bundle.report.converted == 0
    assert bundle.report.dtype == name
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
    assert dtypes(theirs) == dtypes(bundle.model)
    assert (our_logits(bundle.model) - their_logits(theirs)).abs().max() < TOLERANCE[name]
    for ours, stored in (
        ("backbone.embeddings.tokens.weight", "bert.embeddings.word_embeddings.weight"),
        ("classifier.weight", "classifier.weight"),
    ):
        raw = load_file(folder / "model.safetensors")[stored]
        assert torch.equal(bundle.model.state_dict()[ours], raw)


def test_narrowed_on_request(classifier: Path) -> None:
    for name, dtype in HALVES.items():
        bundle = load(classifier, dtype=name)
        found = bundle.model.state_dict()["backbone.layers.0.attention.qkv.weight"]
        raw = load_file(classifier / "model.safetensors")
        start = "bert.encoder.layer.0.attention.self"
        expected = torch.cat([raw[f"{start}.{part}.weight"] for part in ("query", "key", "value")])
        assert torch.equal(found, expected.to(dtype))


@pytest.mark.parametrize("mmap", [True, False])
def test_saved_in_the_type_it_is_in(half, mmap: bool, tmp_path: Path) -> None:
    name, folder = half
    out = tmp_path / "out"
    out.mkdir()
    bundle = load(folder, dtype="auto", mmap=mmap)
    save(bundle, out)
    assert json.loads((out / "config.json").read_text())["dtype"] == name
    before, after = (load_file(f / "model.safetensors") for f in (folder, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype="auto")
    assert dtypes(theirs) == {HALVES[name]}
    assert (our_logits(bundle.model) - their_logits(theirs)).abs().max() < TOLERANCE[name]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "auto", "float32"])
def test_converted(classifier: Path, tmp_path: Path, name: str) -> None:
    convert(classifier, tmp_path / "new", dtype=name)
    expected = HALVES.get(name, torch.float32)
    assert {t.dtype for t in load_file(tmp_path / "new/model.safetensors").values()} == {expected}
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "new", dtype="auto"
    )
    assert dtypes(theirs) == {expected}


def test_of_several_types_none_loses_anything(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "mixed")
    tensors = load_file(classifier / "model.safetensors")
    name = "bert.pooler.dense.weight"
    half = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    for odd, expected in ((torch.float16, "float32"), (torch.float32, "float32")):
        half[name] = tensors[name].to(odd)
        save_file(half, tmp_path / "mixed/model.safetensors")
        assert load(tmp_path / "mixed", dtype="auto").report.dtype == expected
    half[name] = half[name].bfloat16()
    save_file(half, tmp_path / "mixed/model.safetensors")
    assert load(tmp_path / "mixed", dtype="auto").report.dtype == "bfloat16"
    assert json.loads((tmp_path / "mixed/config.json").read_text())["dtype"] == "float32"


def test_values_that_float16_cannot_hold(classifier: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier, tmp_path / "large")
    tensors = load_file(classifier / "model.safetensors")
    tensors["classifier.bias"][0] = 1e6
    save_file(tensors, tmp_path / "large/model.safetensors")
    with pytest.raises(CheckpointError, match=r"'classifier\.bias' .* too large for float16"):
        load(tmp_path / "large", dtype="float16")
    load(tmp_path / "large", dtype="bfloat16")


def test_a_fresh_head_and_random_weights_have_it_too(tiny_folder: Path) -> None:
    from pretune.tasks.classification.classify import Classify, ClassifyOptions

    task = Classify(ClassifyOptions(max_length=16), ["a", "b"])
    assert dtypes(load(tiny_folder, task=task, dtype="bfloat16").model) == {torch.bfloat16}
    assert dtypes(load("bert-tiny", dtype="bfloat16").model) == {torch.bfloat16}
    assert dtypes(load("bert-tiny", dtype="auto").model) == {torch.float32}


@pytest.mark.parametrize("name", ["float64", "int8", "bf16", "", "torch.float16"])
def test_no_such_type(tiny_folder: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="not a type that a model can have"):
        load(tiny_folder, dtype=name)


def test_predicting_and_evaluating(half, classifier: Path) -> None:
    _, folder = half
    rows = [{"text": "good film", "label": "LABEL_0"}, {"text": "the bad", "label": "LABEL_2"}]
    records = Records(rows, "rows")
    exact, kept = load(classifier), load(folder, dtype="auto")
    texts = [row["text"] for row in rows]
    pairs = zip(pretune.predict(kept, texts), pretune.predict(exact, texts), strict=True)
    for found, expected in pairs:
        assert all(abs(found.scores[k] - v) < 0.05 for k, v in expected.scores.items())
    losses = [pretune.evaluate(b, records).metrics["loss"] for b in (kept, exact)]
    assert losses[0] == pytest.approx(losses[1], abs=0.1)


class TestMapped:
    @pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which files are mapped")
    def test_a_window_on_the_file_unless_told_otherwise(self, classifier: Path) -> None:
        maps = Path("/proc/self/maps")
        copied = load(classifier, mmap=False)
        assert str(classifier) not in maps.read_text()
        mapped = load(classifier)
        assert str(classifier) in maps.read_text()
        for name, tensor in mapped.model.state_dict().items():
            assert torch.equal(tensor, copied.model.state_dict()[name])
        del mapped, tensor
        assert str(classifier) not in maps.read_text()

    def test_what_is_written_to_it_stays_out_of_the_file(self, classifier: Path) -> None:
        before = (classifier / "model.safetensors").read_bytes()
        model = load(classifier).model
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert (classifier / "model.safetensors").read_bytes() == before

    def test_it_can_be_saved_over_its_own_file(self, classifier: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(classifier, tmp_path / "own"))
        bundle = load(folder)
        expected = our_logits(bundle.model)
        save(bundle, folder)
        assert torch.equal(our_logits(bundle.model), expected)
        assert torch.equal(our_logits(load(folder).model), expected)
        assert not list(folder.glob(".*"))

    def test_a_header_of_any_length(self, classifier: Path, tmp_path: Path) -> None:
        """Tensors that do not begin at a multiple of their numbers' size are copied."""
        expected = our_logits(load(classifier).model)
        raw = (classifier / "model.safetensors").read_bytes()
        size = int.from_bytes(raw[:8], "little")
        folder = Path(shutil.copytree(classifier, tmp_path / "odd"))
        for more in (1, 2, 3):
            header = raw[8 : 8 + size] + b" " * more
            (folder / "model.safetensors").write_bytes(
                len(header).to_bytes(8, "little") + header + raw[8 + size :]
            )
            model = load(folder).model
            assert all(p.data_ptr() % p.element_size() == 0 for p in model.parameters())
            assert torch.equal(our_logits(model), expected)


def test_a_tensorflow_index_is_read_once(tmp_path: Path, monkeypatch) -> None:
    from pretune.checkpoints.tensorflow import google_bert as tensorflow
    from tests.checkpoints.bundles import FIXTURES

    read = []
    made = tensorflow.TensorBundle
    monkeypatch.setattr(tensorflow, "TensorBundle", lambda path: read.append(path) or made(path))
    assert load(FIXTURES / "tf1").task.name == "mask_lm"
    assert len(read) == 1
