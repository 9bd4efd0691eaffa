from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pretune
from pretune.bundle.bundle import load
from pretune.errors import CheckpointError, DataError, RunError
from pretune.inference import embed as module
from pretune.inference.embed import Embedder, check_output, read_texts
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from tests.checkpoints.sentence_folders import NEW, sentence_folder
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


class TestSentenceTransformers:
    """Folders of sentence-transformers: the vectors are those that it gives itself."""

    #: One is longer than some folders read; capitals are unknown to the cased tokenizer.
    texts = (*TEXTS, "The GOOD film", "good bad film " * 12)

    def theirs(self, folder: Path, **options: Any) -> np.ndarray:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu")
        # One by one: in a batch, GPT-2's padding is seen by nothing, but moves positions.
        return np.concatenate([model.encode([text], **options) for text in self.texts])

    @pytest.mark.parametrize(
        "described",
        [
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}},
            {"pooling": {"pooling_mode": "cls"}, "normalize": True, "prefix": NEW},
            {"pooling": {"pooling_mode": ["max"]}},
            {"pooling": {"pooling_mode_mean_tokens": False}},
            {"pooling": {"pooling_mode": "mean_sqrt_len_tokens"}, "inside": "0_Transformer"},
            {"pooling": {"pooling_mode_lasttoken": True}, "modules": ["Dropout"]},
            {"transformer": {"max_seq_length": 9}, "normalize": True},
            {"transformer": {"max_seq_length": 9}, "tokenizer": {"model_max_length": 5}},
            {"tokenizer": {"model_max_length": 7}},
            {"transformer": {"tokenizer_args": {"model_max_length": 6}, "max_seq_length": 9}},
            {"tokenizer": {"do_lower_case": False}},
            {
                "tokenizer": {"do_lower_case": False},
                "transformer": {"do_lower_case": True, "max_seq_length": 12},
            },
            {"general": {"truncate_dim": 5}, "normalize": True},
        ],
        ids=str,
    )
    def test_a_bert(self, described: dict[str, Any], tiny_folder: Path, tmp_path: Path) -> None:
        folder = sentence_folder(tmp_path / "model", tiny_folder, **described)
        found = pretune.embed(folder, self.texts, device="cpu", batch_tokens=50)
        np.testing.assert_allclose(found, self.theirs(folder), atol=1e-5)

    @pytest.mark.parametrize("mode", ["lasttoken", "cls", "mean", "max"])
    def test_a_gpt2(self, mode: str, bpe: Pair, tmp_path: Path) -> None:
        folder = sentence_folder(
            tmp_path / "model",
            bpe.folder,
            {"pooling_mode": mode},
            transformer={"max_seq_length": 20},
            tokenizer={"pad_token": "<|endoftext|>"},
        )
        found = pretune.embed(folder, self.texts, device="cpu")
        np.testing.assert_allclose(found, self.theirs(folder), atol=1e-5)

    @pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens", "lasttoken"])
    @pytest.mark.parametrize("include", [True, False])
    def test_prompts(self, mode: str, include: bool, tiny_folder: Path, tmp_path: Path) -> None:
        folder = sentence_folder(
            tmp_path / "model",
            tiny_folder,
            {"pooling_mode": mode, "include_prompt": include},
            transformer={"max_seq_length": 12},
            general={"prompts": {"q": "good film: ", "d": "unaffable ", "n": None}},
        )
        for options in ({"prompt_name": "q"}, {"prompt": "a bad "}, {"prompt_name": "n"}):
            found = pretune.embed(folder, self.texts, device="cpu", **options)
            np.testing.assert_allclose(found, self.theirs(folder, **options), atol=1e-5)

    @pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
    def test_a_search(self, similarity: str, tiny_folder: Path, tmp_path: Path) -> None:
        from sentence_transformers import SentenceTransformer

        general = {
            "prompts": {"query": "the good ", "passage": "a bad ", "other": "film "},
            "default_prompt_name": "other",
            "similarity_fn_name": similarity,
        }
        folder = sentence_folder(tmp_path / "model", tiny_folder, general=general)
        theirs = SentenceTransformer(str(folder), device="cpu")
        scores = theirs.similarity(theirs.encode_query("bad"), theirs.encode_document(TEXTS))[0]
        embedder = Embedder(load(folder), device="cpu")
        found = {item.row: item.score for item in embedder.search("bad", TEXTS)}
        assert [found[row] for row in range(5)] == pytest.approx(scores.tolist(), rel=1e-5)
        # Without a search, the default prompt.
        np.testing.assert_allclose(embedder.embed(TEXTS), theirs.encode(TEXTS), atol=1e-5)

    def test_minilm_reads_256_tokens(self, minilm: Path) -> None:
        words = " ".join(f"parcel {i} arrived late and broken" for i in range(60))
        found = pretune.embed(minilm, [words], device="cpu")
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(str(minilm), device="cpu").encode([words])
        np.testing.assert_allclose(found, theirs, atol=1e-5)

    def test_options_win(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = sentence_folder(
            tmp_path / "model",
            tiny_folder,
            {"pooling_mode": "cls"},
            normalize=True,
            transformer={"max_seq_length": 9},
            general={"prompts": {"d": "good "}, "default_prompt_name": "d", "truncate_dim": 5},
        )
        options = {"pooling": "mean", "max_length": 20, "prompt": ""}
        found = pretune.embed(folder, self.texts, normalize=False, **options)
        wanted = pretune.embed(tiny_folder, self.texts, normalize=False, **options)
        np.testing.assert_allclose(found, wanted[:, :5], atol=1e-6)
        # Length 1 that is asked for is that of what is left.
        unit = pretune.embed(folder, self.texts, normalize=True, **options)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)

    def test_a_length_without_room_names_the_folder(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        folder = sentence_folder(tmp_path / "m", tiny_folder, transformer={"max_seq_length": 2})
        with pytest.raises(RunError, match=f"^{folder}: its max_length 2: this model reads 3 to"):
            pretune.embed(folder, TEXTS)

    def test_what_we_cannot_compute_is_refused(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = sentence_folder(tmp_path / "model", tiny_folder, modules=["Dense"])
        with pytest.raises(CheckpointError, match=r"modules\.json: has a Dense: pretune cannot"):
            pretune.embed(folder, TEXTS)
        # With a pooling that is named, it is left out.
        found = pretune.embed(folder, TEXTS, pooling="cls", normalize=True)
        np.testing.assert_allclose(found, pretune.embed(tiny_folder, TEXTS, pooling="cls"))

    def test_texts_that_were_cut_are_counted(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = sentence_folder(tmp_path / "m", tiny_folder, transformer={"max_seq_length": 9})
        embedder = Embedder(load(folder), device="cpu")
        embedder.embed(self.texts)
        lengths = [len(item.ids) for item in load(folder).tokenizer.encode(self.texts)]
        assert embedder.cut == sum(length > 9 for length in lengths)


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


def test_the_next_texts_are_tokenized_while_the_model_reads(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(load(tiny_folder), device="cpu")
    tokenize, run, second = embedder._features, embedder._embed_part, threading.Event()

    def noted(texts: Any, prompt: str, left_out: int, where: Any, start: int = 0) -> Any:
        made = list(tokenize(texts, prompt, left_out, where, start))
        if start == 1:
            second.set()
        return made

    def after_the_next(features: Any, left_out: int) -> Any:
        assert second.wait(10)  # in another thread, or it never comes
        return run(features, left_out)

    monkeypatch.setattr(module, "TEXTS_AT_A_TIME", 1)
    monkeypatch.setattr(embedder, "_features", noted)
    monkeypatch.setattr(embedder, "_embed_part", after_the_next)
    assert [start for start, _ in embedder.chunks(["a", "good film", "bad"])] == [0, 1, 2]


def test_neighbours_are_those_of_all_cosines(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(load(tiny_folder), normalize=False, device="cpu")
    finished = embedder.finished
    # The rows of a product round differently on some processors: equal texts are made equal.
    monkeypatch.setattr(embedder, "finished", lambda pooled: np.round(finished(pooled), 4))
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


@pytest.mark.parametrize(
    ("name", "content", "blank"),
    [
        ("a.tsv", "text\tlabel\na\t1\n \t1\nb\t1\n", [3]),
        ("a.csv", 'text\na\n\n""\nb\n\n', [3, 4]),
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n{"text": "b"}\n', [2]),
        ("a.json", '[{"text": "a"}, {"text": ""}, {"text": "b"}]', [2]),
    ],
)
def test_records_without_text_are_left_out(
    tmp_path: Path, name: str, content: str, blank: list[int]
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    records, texts, left_out = read_texts(str(tmp_path / name))
    assert (texts, left_out) == (["a", "b"], blank)
    assert [row["text"] for row in records.rows] == ["a", "b"]


@pytest.mark.parametrize("column", [None, "text"])
def test_a_table_without_a_telling_name(tmp_path: Path, column: str | None) -> None:
    path = tmp_path / "a.dat"
    path.write_text("text\tlabel\ngood\t1\nbad\t0\n", encoding="utf-8")
    assert read_texts(str(path), column=column)[1] == ["good", "bad"]


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

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"prompt_name": "query"}, "no prompt is called 'query'\n.*names none"),
            ({"prompt_name": "a", "prompt": "b"}, "Give one of the two"),
            ({"prompt": "good " * 62}, "has 64 tokens of the 64 that are read"),
        ],
    )
    def test_of_prompts(self, tiny_folder: Path, options: dict[str, str], told: str) -> None:
        with pytest.raises(RunError, match=told):
            pretune.embed(tiny_folder, TEXTS, device="cpu", **options)

    def test_nothing_left_after_a_prompt(self, bpe: Pair, tmp_path: Path) -> None:
        """The text's only token may be one with the end of the prompt."""
        folder = sentence_folder(
            tmp_path / "model", bpe.folder, {"pooling_mode": "mean", "include_prompt": False}
        )
        with pytest.raises(DataError, match="text 1: a text without tokens after the prompt 'a '"):
            pretune.embed(folder, [""], prompt="a ", device="cpu")

    def test_no_record_with_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_text("text\tlabel\n \t1\n \t1\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"a\.tsv: no text in column 'text'"):
            read_texts(str(path))

    @pytest.mark.parametrize("name", ["a.txt", "there.npy", "no/a.npy", "folder.npy"])
    def test_outputs(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "there.npy").touch()
        (tmp_path / "folder.npy").mkdir()
        with pytest.raises(RunError, match=name):
            check_output(tmp_path / name)
        check_output(tmp_path / "there.npy", overwrite=True)
