"""The tokenizers of all families, from the files that each publishes, against transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.load import has_tokenizer, load_tokenizer
from pretune.tokenizers.tokenizer import SPECIAL_NAMES, Tokenizer
from tests.tokenizers.family_folders import folders, write_folder
from tests.tokenizers.pieces import lines, processor, spm_bytes

FOLDERS = folders()
#: Characters that texts seldom have: of many planes, marks, marks of SentencePiece, white space.
_ODD = (
    "aA.,'\"`´ \t\n\r\u00a0\u3000\u200b\u0301\u0308ΣςİıﬁÅ"
    "Ａａ①½㍿…—中国電影하ㄱก็🙂👩\u200d👧▁<>[]/#\0\ufffd\ue000"
)


def fuzzed(count: int) -> list[str]:
    random_ = random.Random(3)

    def character() -> str:
        if random_.random() < 0.8:
            return random_.choice(_ODD)
        number = random_.randrange(0x20, 0x30000)
        return chr(number) if not 0xD800 <= number < 0xE000 else "x"

    marks = ["</s>", "<s>", "<mask>", "[MASK]", "<extra_id_0>", "<|im_end|>", "<unk>", "\n\n"]
    return [
        "".join(
            random_.choice(marks) if random_.random() < 0.03 else character()
            for _ in range(random_.randrange(24))
        )
        for _ in range(count)
    ]


def check_same(ours: Tokenizer, folder: Path, texts: list[str]) -> None:
    """Check ids, places and decoded texts of texts, and ids and segments of pairs."""
    theirs = AutoTokenizer.from_pretrained(folder)
    expected, encoded = theirs(texts, return_offsets_mapping=True), ours.encode(texts)
    for text, one, ids in zip(texts, encoded, expected["input_ids"], strict=True):
        assert one.ids == ids, text
    places = [[tuple(place) for place in line] for line in expected["offset_mapping"]]
    assert [one.offsets for one in encoded] == places
    for ids in expected["input_ids"]:
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)
    words = [text.split() for text in texts if text.split()]
    expected_words = theirs(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert [one.ids for one in ours.encode_words(words)] == expected_words
    second = texts[1:] + texts[:1]
    pairs, expected = ours.encode(texts, second), theirs(texts, second)
    assert [one.ids for one in pairs] == expected["input_ids"]
    none = [[0] * len(one.ids) for one in pairs]
    if ours.engine.num_special_tokens_to_add(is_pair=True):
        assert [one.segments for one in pairs] == expected.get("token_type_ids", none)
    for name in SPECIAL_NAMES:
        # Where nothing names a role, we take usual tokens; of GPT-2 none is for what is unknown.
        number, own = getattr(theirs, f"{name}_id"), ours.special_id(name)
        if number is not None and own is not None:
            assert own == number, name


def check_all(folder: Path, tmp_path: Path, texts: list[str], every: int = 1) -> Tokenizer:
    """Check a folder; on one text in `every`, what we and transformers save of it, too."""
    ours = load_tokenizer(folder)
    check_same(ours, folder, texts)
    for name, save in (("ours", ours.save), ("theirs", _saving(folder))):
        saved = tmp_path / name
        saved.mkdir()
        save(saved)
        if (folder / "config.json").is_file():
            (saved / "config.json").write_bytes((folder / "config.json").read_bytes())
        check_same(load_tokenizer(saved), saved, texts[::every])
    return ours


def _saving(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder).save_pretrained


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_places_and_texts_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "folder", FOLDERS[name])
    check_same(load_tokenizer(folder), folder, [*lines()[::40], *fuzzed(40)])


@pytest.mark.parametrize("name", ["camembert", "t5, bare", "llama, legacy", "qwen2, misnamed"])
def test_what_is_saved_is_read_in_the_same_way(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "folder", FOLDERS[name])
    check_all(folder, tmp_path, [*lines()[::90], *fuzzed(10)])


def _real(data: Path) -> list[str]:
    english = (data / "multi30k-en-de" / "train.en").read_text().split("\n")[:2000]
    rows = (data / "tatoeba-zh-en" / "train.tsv").read_text().split("\n")[:2000]
    return [*english, *(row.split("\t")[0] for row in rows), *fuzzed(2000)]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_of_thousands_of_lines(tmp_path: Path, data_folder: Path, name: str) -> None:
    folder = write_folder(tmp_path / "folder", FOLDERS[name])
    check_all(folder, tmp_path, _real(data_folder), every=10)


def test_a_setting_that_is_null_is_not_the_default(tmp_path: Path) -> None:
    files, kind, _ = FOLDERS["xlm-roberta"]
    folder = write_folder(tmp_path / "folder", (files, kind, {"add_prefix_space": None}))
    check_same(load_tokenizer(folder), folder, ["a cat", "The dog"])
    assert json.loads((folder / "tokenizer_config.json").read_text())["add_prefix_space"] is None


@pytest.mark.parametrize("name", ["xlm-roberta", "t5", "llama", "llama 2", "roberta", "deberta"])
def test_read_literally_no_text_makes_a_special_token(tmp_path: Path, name: str) -> None:
    ours = load_tokenizer(write_folder(tmp_path / "folder", FOLDERS[name]))
    names = set(ours.special.values()) - {ours.special.get("unk_token")}
    assert names
    for token in names:
        number, text = ours.engine.token_to_id(token), f"a{token} {token}"
        assert number in ours.encode_bare([text])[0].ids
        assert number not in ours.encode_bare([text], literal=True)[0].ids
    # All else is as before, also with new tokens.
    ours.engine.add_tokens(["<new>"])
    plain = "a <new> dog and 电影"
    assert ours.encode([plain], [plain], literal=True) == ours.encode([plain], [plain])


REFUSED = {
    "two files": (("a.model", "b.spm"), {}, "2 SentencePiece files, and nothing says which"),
    "another name": (("spm.model",), {"tokenizer_class": "T5Tokenizer"}, "vocabulary in spiece"),
    "another kind": (
        ("tokenizer.model",),
        {"tokenizer_class": "LlamaTokenizer"},
        "of the kind u",
    ),
    "as it is": (("tokenizer.model",), {"tokenizer_class": "TokenizersBackend"}, "only those of a"),
    "no class here": (("spiece.model",), {"tokenizer_class": "XLNetTokenizer"}, "a XLNetTokenizer"),
    "no such token": (
        ("spiece.model",),
        {"tokenizer_class": "T5Tokenizer", "eos_token": None},
        "puts None around texts",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pieces_that_cannot_be_read_as_their_class_does_are_refused(
    tmp_path: Path, name: str
) -> None:
    files, settings, match = REFUSED[name]
    data = spm_bytes("t5")
    folder = write_folder(tmp_path / "folder", (dict.fromkeys(files, data), None, settings))
    with pytest.raises(CheckpointError, match=match):
        load_tokenizer(folder)
    assert has_tokenizer(folder)


@pytest.mark.parametrize("inside", [True, False])
def test_a_file_without_a_class_is_read_as_sentencepiece_does(tmp_path: Path, inside: bool) -> None:
    (tmp_path / "m.spm").write_bytes(spm_bytes("t5"))
    ours = load_tokenizer(tmp_path if inside else tmp_path / "m.spm")
    theirs = processor(spm_bytes("t5"))
    texts = lines()[::90]
    assert [one.ids for one in ours.encode(texts)] == theirs.encode(texts)
    assert ours.end_id == theirs.eos_id() == 1
    assert ours.special_id("pad_token") == 0
