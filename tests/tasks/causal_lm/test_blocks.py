"""The blocks of a prepared corpus equal the blocks of its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretune.errors import DataError
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.features import featurize
from pretune.tokenizers.added_tokens import add_tokens
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.train import train_tokenizer
from tests.corpus.conftest import TEXTS as SAMPLE
from tests.tasks.stored import assert_same, raw, stored


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A byte-level BPE with an end of text, and characters, which have none."""
    actual = {}
    for kind, size in (("bpe", 300), ("char", None)):
        actual[kind] = tmp_path_factory.mktemp(kind)
        train_tokenizer([*SAMPLE, "😀 \n"], kind, size, min_frequency=1).save(actual[kind])  # type: ignore[arg-type]
    return actual


DOCUMENTS = st.lists(
    st.text("The good film.电影。😀 \n", min_size=1, max_size=40).filter(lambda t: t.strip() != ""),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=DOCUMENTS,
    size=st.integers(3, 20),
    boundaries=st.booleans(),
    kind=st.sampled_from(["bpe", "char"]),
    stride=st.one_of(st.none(), st.integers(1, 20)),
)
def test_are_those_of_the_texts(
    tokenizers: dict[str, Path],
    tmp_path: Path,
    texts: list[str],
    size: int,
    boundaries: bool,
    kind: str,
    stride: int | None,
) -> None:
    tokenizer = load_tokenizer(tokenizers[kind])
    stride = None if stride is None else min(stride, size)
    documents = stored(texts, tokenizers[kind], tmp_path / "c")
    task = CausalLm(CausalLmOptions(max_length=size, boundaries=boundaries, stride=stride))
    expected = featurize(task, raw(texts), tokenizer, evaluation=True)
    if len(expected) == 0:
        with pytest.raises(DataError, match="no document has two tokens"):
            featurize(task, documents, tokenizer, evaluation=True)
        return
    actual = featurize(task, documents, tokenizer, evaluation=True)
    # A place inside a document is told evenly: where a block ends there, by the sum of its own.
    assert_same(actual, expected, but=("chars", "bytes"))
    if boundaries:  # where a recurrent model's state is carried on
        assert actual.continues.tolist() == expected.continues.tolist()
    everything = np.arange(len(actual))
    ours, theirs = (features.batch(everything).targets for features in (actual, expected))
    unknown = tokenizer.special_id("unk_token")
    exact = unknown is None or not any(
        (documents.tokens(i) == unknown).any() for i in range(len(texts))
    )
    if exact:
        for name in ("chars", "bytes"):
            assert int(ours[name].sum()) == int(theirs[name].sum())
        assert all(int(n) >= 0 for n in ours["chars"])


def test_the_name_of_a_special_token_in_a_text_is_text(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    texts = ["the <|endoftext|> film", "<|endoftext|>"]
    tokenizer = load_tokenizer(tokenizers["bpe"])
    task = CausalLm(CausalLmOptions(max_length=200))
    actual = featurize(task, raw(texts), tokenizer)
    documents = stored(texts, tokenizers["bpe"], tmp_path / "c")
    assert_same(actual, featurize(task, documents, tokenizer), but=("chars", "bytes"))
    tokens = actual.batch(np.arange(len(actual))).tokens
    edges = int((tokens == tokenizer.special_id("eos_token")).sum())
    assert edges == 2  # before each of them; the last one is a target alone
    # What is no special token is whole, as model.new_tokens has it.
    add_tokens(tokenizer, ["film<|x|>"])
    (actual,) = tokenizer.encode_bare(["film<|x|>"])
    assert actual.ids == [tokenizer.vocab_size - 1]
    tokens = featurize(task, raw(["a film<|x|>b <|endoftext|>"]), tokenizer).batch(np.arange(1))
    assert tokens.tokens.tolist().count(tokenizer.vocab_size - 1) == 1


def test_a_long_document_is_not_read_for_one_block(
    tokenizers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = stored(["the good film. " * 500, "short"], tokenizers["bpe"], tmp_path / "c")
    task = CausalLm(CausalLmOptions(max_length=16))
    features = featurize(task, documents, load_tokenizer(tokenizers["bpe"]))
    read: list[int] = []
    original = type(documents.corpus).read

    def counting(self: Any, start: int, stop: int) -> Any:
        read.append(stop - start)
        return original(self, start, stop)

    monkeypatch.setattr(type(documents.corpus), "read", counting)
    features.batch(np.array([0, 40, len(features) - 2]))
    assert 0 < sum(read) <= 3 * 17


def test_some_documents(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    texts = [f"the good film {'电影' * i}" for i in range(9)]
    documents = stored(texts, tokenizers["bpe"], tmp_path / "c")
    tokenizer = load_tokenizer(tokenizers["bpe"])
    for boundaries in (True, False):
        task = CausalLm(CausalLmOptions(max_length=7, boundaries=boundaries))
        chosen = [1, 4, 5, 8]
        expected = featurize(task, raw([texts[i] for i in chosen]), tokenizer)
        assert_same(
            featurize(task, documents.take(chosen), tokenizer), expected, but=("chars", "bytes")
        )
    digests = {
        featurize(CausalLm(CausalLmOptions(max_length=size)), some, tokenizer).fingerprint()
        for size in (7, 8)
        for some in (documents, documents.take([1, 2]), documents.head(2))
    }
    assert len(digests) == 6
