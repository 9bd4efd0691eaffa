"""Tokens added to a bare vocabulary, as older transformers wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.load import load_tokenizer

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film"]
VOCABULARY += ["un", "##aff", "##able", "[unused1]", "<", "x", ">"]
TEXTS = [
    "the BLOCKBUSTER film<x>the",
    "un-blockbusters [unused1] [UNUSED1]",
    "<x> the [mypad][MASK]",
    "the [MYPAD] film Blockbuster",
]
NEXT = len(VOCABULARY)


def token(content: str, **flags: bool) -> dict[str, Any]:
    usual = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": content, **usual, **flags}


LAYOUTS: dict[str, dict[str, Any]] = {
    "added_tokens.json": {
        "added_tokens.json": {"<x>": NEXT + 1, "Blockbuster": NEXT, "[MYPAD]": NEXT + 2},
        "special_tokens_map.json": {
            "pad_token": "[MYPAD]",
            "additional_special_tokens": ["<x>", "[unused1]"],
        },
    },
    "decoder": {
        "tokenizer_config.json": {
            "pad_token": "[MYPAD]",
            "added_tokens_decoder": {
                "0": token("[PAD]", special=True),
                str(NEXT + 2): token("[MYPAD]", special=True),
                str(NEXT): token("Blockbuster", single_word=True, normalized=True),
                str(NEXT + 1): token("<x>", rstrip=True, special=True),
            },
        }
    },
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    settings = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
    files = {**files, "tokenizer_config.json": settings | files.get("tokenizer_config.json", {})}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_are_those_of_transformers(tmp_path: Path, layout: str) -> None:
    ours = load_tokenizer(write(tmp_path, LAYOUTS[layout]))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs) == NEXT + 3
    assert [one.ids for one in ours.encode(TEXTS)] == theirs(TEXTS)["input_ids"]
    assert NEXT in ours.encode(["the BLOCKBUSTER film"])[0].ids
    assert ours.special_id("pad_token") == theirs.pad_token_id == NEXT + 2
    (bare,) = ours.encode_bare(["[MYPAD]<x>"], literal=True)
    assert not {NEXT + 1, NEXT + 2} & set(bare.ids)
    (tmp_path / "again").mkdir()
    ours.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode(TEXTS) == ours.encode(TEXTS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("added_tokens.json", {"a": NEXT, "b": NEXT + 2}, f"'b' has the id {NEXT + 2}, but.*15"),
        ("added_tokens.json", {"film": NEXT}, f"'film' has the id {NEXT}, but.*6"),
        ("added_tokens.json", {"a": "15"}, "is not a token and its id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": token("a")}}, "'x'.*is not an id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"14": "a"}}, "'14'.*is not an id"),
        ("tokenizer_config.json", {"added_tokens_decoder": ["a"]}, "is not an id and its token"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"14": {"content": "a", "special": 1}}},
            "is not an id and its token",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, name: str, content: dict[str, Any], said: str
) -> None:
    write(tmp_path, {name: content})
    with pytest.raises(CheckpointError, match=rf"{name}: .*{said}"):
        load_tokenizer(tmp_path)
