from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pretune
from pretune.bundle.bundle import load
from pretune.errors import DataError, RunError
from pretune.inference import embed as module
from pretune.inference.embed import Embedder, check_output, read_texts
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from tests.inference.conftest import Pair

TEXTS = [
    "the film was good",
    "bad",
    "the good film is unaffable , the bad film is good - 2 times",
    "a film",
    "good bad good bad good",
]


def theirs(model: Any, encode: Any, pooling: str) -> np.ndarray:
    """Each text alone, or padded: transformers, as a person would write it."""
    rows = []
    for text in TEXTS:
        ids = torch.tensor([encode(text)])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[-1][0]
        rows.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_tokens", [1, 17, 8192])
def test_bert_gives_what_transformers_gives(
    tiny_folder: Path, pooling: str, batch_tokens: int
) -> None:
    from transformers import BertModel

    bundle = load(tiny_folder)
    reference = BertModel.from_pretrained(tiny_folder).eval()
    wanted = theirs(reference, lambda text: bundle.tokenizer.encode([text])[0].ids, pooling)
    found = pretune.embed(
        bundle, TEXTS, pooling=pooling, normalize=False, device="cpu", batch_tokens=batch_tokens
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_gpt2_gives_what_transformers_gives(bpe: Pair, pooling: str) -> None:
    tokenizer = bpe.bundle.tokenizer
    wanted = theirs(bpe.theirs, lambda text: tokenizer.encode([text])[0].ids, pooling)
    found = pretune.embed(bpe.bundle, TEXTS, pooling=pooling, normalize=False, device="cpu")
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_minilm_is_the_published_recipe(minilm: Path) -> None:
    """Padding, mean pooling by the attention mask, length 1: the model card of all-MiniLM-L6-v2."""
    from transformers import BertModel

    bundle = load(minilm)
    encoded = [one.ids for one in bundle.tokenizer.encode(TEXTS)]
    longest = max(map(len, encoded))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])
    with torch.no_grad():
        hidden = BertModel.from_pretrained(minilm).eval()(ids, mask).last_hidden_state
    sums = (hidden * mask[..., None]).sum(1)
    wanted = F.normalize(sums / mask.sum(1, keepdim=True))
    np.testing.assert_allclose(pretune.embed(bundle, TEXTS, device="cpu"), wanted, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_change_nothing(
    tiny_folder: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(load(tiny_folder), device="cpu")
    whole = embedder.embed(TEXTS)
    near = embedder.search("the film", TEXTS, top_k=3)
    monkeypatch.setattr(module, "TEXTS_AT_A_TIME", chunk)
    done: list[int] = []
    np.testing.assert_allclose(embedder.embed(TEXTS, progress=done.append), whole, atol=1e-6)
    assert done[-1] == len(TEXTS)
    again = embedder.search("the film", TEXTS, top_k=3)
    assert [item.row for item in again] == [item.row for item in near]


def test_neighbours_are_those_of_all_cosines(tiny_folder: Path) -> None:
    embedder = Embedder(load(tiny_folder), normalize=False, device="cpu")
    texts = [*TEXTS, TEXTS[1]]
    vectors, query = embedder.embed(texts), embedder.embed(["bad"])[0]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    found = embedder.search("bad", texts, top_k=4)
    assert [item.row for item in found[:2]] == [1, 5]  # equal ones in the order of the file
    assert [item.score for item in found] == pytest.approx(sorted(cosines)[:-5:-1], abs=1e-5)
    assert found[2].text == texts[found[2].row]


def test_of_a_fine_tuned_model_the_backbone_is_used(tiny_folder: Path) -> None:
    trained = load(tiny_folder, task=Classify(ClassifyOptions(max_length=16), ["bad", "good"]))
    found, wanted = (pretune.embed(b, "good film", device="cpu") for b in (trained, tiny_folder))
    np.testing.assert_allclose(found, wanted)
    assert np.linalg.norm(found[0]) == pytest.approx(1.0)


def test_defaults_by_family(tiny_folder: Path, bpe: Pair) -> None:
    assert Embedder(load(tiny_folder), device="cpu").pooling == "mean"
    assert Embedder(bpe.bundle, device="cpu").pooling == "last"


def test_long_texts_are_cut(tiny_folder: Path) -> None:
    long, cut = "good " * 500, "good " * 62  # of 64 positions two are for [CLS] and [SEP]
    found = pretune.embed(tiny_folder, [long, cut], device="cpu")
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


class TestMistakes:
    @pytest.mark.parametrize(
        ("pooling", "said"), [("last", r"last token is \[SEP\]"), ("men", "Did you mean 'mean'")]
    )
    def test_of_pooling(self, tiny_folder: Path, pooling: str, said: str) -> None:
        with pytest.raises(RunError, match=said):
            Embedder(load(tiny_folder), pooling=pooling, device="cpu")

    def test_cls_of_a_decoder(self, bpe: Pair) -> None:
        with pytest.raises(RunError, match="sees nothing but itself"):
            Embedder(bpe.bundle, pooling="cls", device="cpu")

    def test_a_text_without_tokens(self, bpe: Pair) -> None:
        with pytest.raises(DataError, match="text 2: a text without tokens"):
            pretune.embed(bpe.bundle, ["a", ""], device="cpu")

    @pytest.mark.parametrize("length", [0, 2, 65])
    def test_a_length_it_cannot_read(self, tiny_folder: Path, length: int) -> None:
        with pytest.raises(RunError, match="reads 3 to 64 tokens"):
            Embedder(load(tiny_folder), max_length=length, device="cpu")

    def test_a_record_without_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_text("text\tlabel\na\t1\n \t1\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"a\.tsv, line 3, column 'text': no text"):
            read_texts(str(path))

    @pytest.mark.parametrize("name", ["a.txt", "there.npy", "no/a.npy", "folder.npy"])
    def test_outputs(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "there.npy").touch()
        (tmp_path / "folder.npy").mkdir()
        with pytest.raises(RunError, match=name):
            check_output(tmp_path / name)
        check_output(tmp_path / "there.npy", overwrite=True)
