"""The sequences and pairs of a prepared corpus equal those made of its texts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pretune.errors import DataError
from pretune.tasks.features import featurize
from pretune.tasks.masked_lm.mask_lm import MaskLm, MaskLmOptions
from pretune.tokenizers.load import load_tokenizer
from tests.tasks.stored import assert_same, raw, stored

SENTENCES = st.lists(
    st.lists(
        st.sampled_from(
            ["the", "film", "unaffable", "x1", "goodness", "好", "电影", "Ω", "😀", ","]
        ),
        min_size=1,
        max_size=8,
    ).map(lambda words: " ".join(words) + ".\n"),
    min_size=1,
    max_size=6,
).map("".join)
DOCUMENTS = st.lists(SENTENCES, min_size=2, max_size=6)


def task(**options: Any) -> MaskLm:
    return MaskLm(MaskLmOptions(**options))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=DOCUMENTS,
    size=st.integers(5, 30),
    mask=st.sampled_from(["tokens", "words", "spans"]),
    options=st.sampled_from(
        [
            {"next": "none"},
            {"next": "nsp"},
            {"next": "sop"},
            {"next": "nsp", "dupe": 3, "short_share": 0.5},
        ]
    ),
)
@example(
    texts=["Ω Ω Ω Ω", "the film\nΩ Ω Ω"], size=5, mask="tokens", options={"next": "none"}
)  # nothing to guess
def test_are_those_of_the_texts(
    tiny_vocab_folder: Path,
    tmp_path: Path,
    texts: list[str],
    size: int,
    mask: str,
    options: dict[str, Any],
) -> None:
    tokenizer = load_tokenizer(tiny_vocab_folder)
    documents = stored(texts, tiny_vocab_folder, tmp_path / "c")
    ours, theirs = (task(max_length=size, mask=mask, **options) for _ in range(2))
    expected = featurize(theirs, raw(texts), tokenizer)
    if len(expected) == 0:
        with pytest.raises(DataError, match="nothing to learn"):
            featurize(ours, documents, tokenizer)
        return
    actual = featurize(ours, documents, tokenizer)
    # The numbers of words differ; which neighbours have the same does not: the masks tell.
    assert_same(actual, expected, but=("words",))
    which = np.arange(len(actual))
    one, two = (
        kind.augment(features.batch(which), 7, 1)
        for kind, features in ((ours, actual), (theirs, expected))
    )
    assert torch.equal(one.tokens, two.tokens)
    assert torch.equal(one.targets["masked"], two.targets["masked"])


def test_random_segments_come_from_anywhere(tiny_vocab_folder: Path, tmp_path: Path) -> None:
    """Far beyond 1,024 documents, and from none more often than by chance."""
    texts = [f"x {i}.\nfilm {i}.\nx {i}." for i in range(1500)]
    documents = stored(texts, tiny_vocab_folder, tmp_path / "c", shard_tokens=9999)
    tokenizer = load_tokenizer(tiny_vocab_folder)
    features = featurize(task(max_length=40, next="nsp", short_share=0), documents, tokenizer)
    batch = features.batch(np.arange(len(features)), sort=False)
    others = batch.targets["next"]
    assert abs(float(others.float().mean()) - 0.5) < 0.05
    parts = torch.split(batch.tokens, list(batch.layout.lengths))
    from_far = 0
    for index, (ids, label) in enumerate(zip(parts, others.tolist(), strict=True)):
        numbers = set(map(int, re.findall(r"\d+", tokenizer.decode(ids.tolist()))))
        own = features.record(index)
        assert numbers <= {own} if label == 0 else True
        from_far += any(abs(number - own) > 1024 for number in numbers)
    assert from_far > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "words", "words": "jieba"}, "task.words=jieba cannot be told"),
        ({"next": "nsp"}, "no document has two sentences"),
    ],
)
def test_what_cannot_be(
    tiny_vocab_folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    documents = stored(["the film", "the good film"], tiny_vocab_folder, tmp_path / "c")
    with pytest.raises(DataError, match=message):
        featurize(task(**options), documents, load_tokenizer(tiny_vocab_folder))


def test_words_of_bytes_cannot_be_told(bert_bytes: Path, tmp_path: Path) -> None:
    documents = stored(["the film", "the good film"], bert_bytes, tmp_path / "c")
    with pytest.raises(DataError, match="cannot be told from tokens alone"):
        featurize(task(mask="words"), documents, load_tokenizer(bert_bytes))


def test_each_token_in_turn_needs_texts(tiny_vocab_folder: Path, tmp_path: Path) -> None:
    documents = stored(["the film", "the good film"], tiny_vocab_folder, tmp_path / "c")
    tokenizer = load_tokenizer(tiny_vocab_folder)
    each = task(evaluate="each")
    assert len(featurize(each, documents, tokenizer)) == 2
    with pytest.raises(DataError, match="reads texts"):
        featurize(each, documents, tokenizer, evaluation=True)


@pytest.fixture
def bert_bytes(tmp_path: Path) -> Path:
    """A byte-level vocabulary with BERT's special tokens."""
    from pretune.tokenizers.train import train_tokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    folder = tmp_path / "bytes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train_tokenizer(["the good film"], "bpe", 270, special=special, min_frequency=1).save(folder)
    return folder
