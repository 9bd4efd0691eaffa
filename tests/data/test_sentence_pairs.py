"""Pairs of segments: what follows what, how long they are, and how often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers

from pretune.data.records import Records
from pretune.data.sentence_pairs import (
    PairMaker,
    RecordDocuments,
    SegmentPair,
    SentenceTokens,
    tokenize_sentences,
)
from pretune.errors import DataError
from pretune.tokenizers.added_tokens import add_tokens
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

MOST = 12  # documents, sentences of each, words of each


def name(document: int, sentence: int, word: int) -> str:
    return f"d{document}s{sentence}w{word}"


NAMES = [name(d, s, w) for d in range(MOST) for s in range(MOST) for w in range(MOST)]
ENGINE = RustTokenizer(models.WordLevel({n: i for i, n in enumerate(NAMES)}, unk_token=NAMES[0]))
ENGINE.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
#: Each id is a place: (document * 12 + sentence) * 12 + word.
TOKENIZER = Tokenizer(ENGINE, {})

#: For each document the number of words of each sentence.
Shape = list[list[int]]
shapes = st.lists(
    st.lists(st.integers(1, MOST), min_size=0, max_size=MOST), min_size=2, max_size=5
).filter(lambda shape: sum(1 for document in shape if document) >= 2)


def corpus(shape: Shape) -> Records:
    """Documents with one sentence a line, of words that say where they stand."""
    rows = [
        {
            "text": "\n".join(
                " ".join(name(d, s, w) for w in range(words)) for s, words in enumerate(document)
            )
        }
        for d, document in enumerate(shape)
    ]
    return Records(rows, "corpus")


def test_the_name_of_a_special_token_in_a_text_is_text(tiny_vocab_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_vocab_folder)
    add_tokens(tokenizer, ["blockbuster"])
    (found,) = tokenize_sentences(["the [SEP] film [MASK] blockbuster"], tokenizer, None)
    special = {tokenizer.special_id(name) for name in ("sep_token", "mask_token", "cls_token")}
    assert not special & set(found.ids.tolist())
    assert found.ids.tolist()[-1] == tokenizer.vocab_size - 1  # as model.new_tokens adds them


def all_pairs(shape: Shape, kind, room: int, copies: int = 1) -> list[tuple[int, SegmentPair]]:
    maker = PairMaker(RecordDocuments(corpus(shape), TOKENIZER), kind=kind, room=room)
    return [
        (row, pair)
        for row in range(len(shape))
        for copy in range(copies)
        for pair in maker.pairs(row, copy)
    ]


def documents_of(part: SentenceTokens) -> set[int]:
    return set((part.ids // MOST**2).tolist())


def consecutive(ids: np.ndarray, shape: Shape) -> bool:
    """Whether words stand in a document just as they do here."""
    line = [
        (d * MOST + s) * MOST + w
        for d, document in enumerate(shape)
        for s, words in enumerate(document)
        for w in range(words)
    ]
    if len({int(i) // MOST**2 for i in ids}) != 1:
        return False
    start = line.index(int(ids[0]))
    return line[start : start + len(ids)] == ids.tolist()


class TestPairs:
    @given(shapes, st.integers(2, 40))
    def test_of_nsp(self, shape: Shape, room: int) -> None:
        for row, pair in all_pairs(shape, "nsp", room, copies=2):
            first, second = pair.first, pair.second
            assert len(first) >= 1
            assert len(second) >= 1
            assert len(first) + len(second) <= room
            assert documents_of(first) == {row}
            assert consecutive(first.ids, shape)
            assert consecutive(second.ids, shape)
            if pair.label == 0:  # the true next one: without a gap
                assert consecutive(np.concatenate([first.ids, second.ids]), shape)
            else:
                assert row not in documents_of(second)

    @given(shapes, st.integers(2, 40))
    def test_of_sop(self, shape: Shape, room: int) -> None:
        for row, pair in all_pairs(shape, "sop", room, copies=2):
            parts = [pair.first.ids, pair.second.ids]
            assert len(pair.first) + len(pair.second) <= room
            assert documents_of(pair.first) == documents_of(pair.second) == {row}
            assert consecutive(np.concatenate(parts[::-1] if pair.label else parts), shape)

    @given(shapes, st.sampled_from(["nsp", "sop"]))
    def test_are_always_the_same(self, shape: Shape, kind) -> None:
        one, two = (all_pairs(shape, kind, 20) for _ in range(2))
        assert len(one) == len(two)
        for (_, a), (_, b) in zip(one, two, strict=True):
            assert a.label == b.label
            assert a.first.ids.tolist() == b.first.ids.tolist()
            assert a.second.ids.tolist() == b.second.ids.tolist()

    @given(shapes, st.sampled_from(["nsp", "sop"]))
    def test_use_every_sentence_but_a_last_one_alone(self, shape: Shape, kind) -> None:
        """In a room that is large enough for nothing to be cut; random segments do not count."""
        seen = {
            int(token) // MOST
            for row, pair in all_pairs(shape, kind, 400)
            for part in (pair.first, pair.second)
            for token in part.ids
            if token // MOST**2 == row
        }
        for d, document in enumerate(shape):
            assert seen.issuperset(d * MOST + s for s in range(len(document) - 1))


LONG: Shape = [[6, 3, 8, 5, 4, 9, 2, 7, 5, 6, 4, 3] for _ in range(MOST)]


class TestRates:
    @pytest.mark.parametrize("kind", ["nsp", "sop"])
    @pytest.mark.parametrize("shape", [LONG, [[3, 4], [5, 2], [1, 9, 4]]], ids=["long", "short"])
    def test_both_labels_are_equally_likely(self, kind, shape: Shape) -> None:
        labels = [pair.label for _, pair in all_pairs(shape, kind, 24, copies=300)]
        assert len(labels) >= 900
        assert abs(np.mean(labels) - 0.5) < 4.5 * 0.5 / np.sqrt(len(labels))

    def test_random_segments_come_from_all_other_documents(self) -> None:
        found = [
            next(iter(documents_of(pair.second)))
            for row, pair in all_pairs(LONG, "nsp", 24, copies=200)
            if pair.label and row == 3
        ]
        counts = np.bincount(found, minlength=MOST) / len(found)
        assert counts[3] == 0
        sigma = np.sqrt(1 / 11 * 10 / 11 / len(found))
        assert all(abs(share - 1 / 11) < 4.5 * sigma for i, share in enumerate(counts) if i != 3)

    def test_one_in_ten_is_short(self) -> None:
        """First pairs of sentences of two words: 24 of them unless the target is 22 or less."""
        maker = PairMaker(RecordDocuments(corpus([[2] * MOST]), TOKENIZER), kind="sop", room=24)
        firsts = (next(maker.pairs(0, copy)) for copy in range(3000))
        lengths = np.array([len(pair.first) + len(pair.second) for pair in firsts])
        expected = 0.1 * 21 / 23
        assert abs(np.mean(lengths < 24) - expected) < 4.5 * np.sqrt(expected / 3000)
        # Two sentences at least: so targets from 2 to 4 give 4.
        assert set(lengths.tolist()) == set(range(4, 25, 2))
        assert abs(np.mean(lengths == 4) - 0.1 * 3 / 23) < 4.5 * np.sqrt(0.013 / 3000)

    def test_copies_differ(self) -> None:
        maker = PairMaker(RecordDocuments(corpus(LONG), TOKENIZER), kind="nsp", room=24)
        splits = [[p.first.ids.tolist() for p in maker.pairs(0, copy)] for copy in range(3)]
        assert splits[0] != splits[1] != splits[2]

    def test_without_short_ones(self) -> None:
        maker = PairMaker(RecordDocuments(corpus(LONG), TOKENIZER), kind="sop", room=24, short=0)
        for copy in range(50):
            *before, _ = maker.pairs(0, copy)
            assert all(len(pair.first) + len(pair.second) == 24 for pair in before)


def test_one_document_has_no_other() -> None:
    maker = PairMaker(RecordDocuments(corpus([[3, 3, 3], []]), TOKENIZER), kind="nsp", room=5)
    with pytest.raises(DataError, match="no two records have text"):
        [list(maker.pairs(0, copy)) for copy in range(20)]
