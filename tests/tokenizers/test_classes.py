"""Folders whose files contradict each other: we read them as transformers does, or not at all."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, XLMRobertaTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.added_tokens import add_tokens
from pretune.tokenizers.engines import (
    bert_normalizer,
    byte_level_engine,
    frame_as_bert,
    wordpiece_engine,
)
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<unk>", "<s>", "</s>", "Good", "good"]
WORDS += ["Ärger", "ärger", "arger", "中", "国", "中国", "film", "##s", *string.ascii_lowercase]
TEXTS = [
    "Good films Ärger 中国 good",
    "zz[MASK] <s> </s> 😀",
    "x <e1> BLOCKBUSTER </s>y<e5> <e4><e3><e2>",
    "",
]
PAIRS = [TEXTS[::-1], TEXTS]
#: Settings that contradict the file below, which is cased, keeps accents, and spaces ideographs.
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "cased": {"do_lower_case": False},
    "uncased": {"do_lower_case": True},
    "accents": {"do_lower_case": False, "strip_accents": True},
    "uncased with accents": {"do_lower_case": True, "strip_accents": False},
    "ideographs": {"do_lower_case": False, "tokenize_chinese_chars": False},
    "unknown": {"unk_token": "<unk>", "do_lower_case": False},
    "ends": {"sep_token": "</s>", "cls_token": "<s>"},
    "long form": {"sep_token": {"__type": "AddedToken", "content": "</s>", "lstrip": True}},
    "new mask": {"mask_token": "<mask>"},
    "no mask": {"mask_token": None},
    "extra": {"extra_special_tokens": ["<e1>"]},
    "additional": {"additional_special_tokens": ["<e1>", "good"]},
    "own name": {"image_token": "<e1>"},
    "own names and a list": {
        "additional_special_tokens": ["<e2>", "<e1>"],
        "extra_special_tokens": {"image_token": "<e3>", "video_token": "<e4>"},
        "audio_token": "<e5>",
    },
    "own name and a list": {"additional_special_tokens": ["<e2>"], "image_token": "<e1>"},
    "two lists": {"additional_special_tokens": ["<e2>"], "extra_special_tokens": ["<e1>"]},
    "added": {
        "added_tokens_decoder": {
            str(i): {"content": WORDS[i], "special": True, "normalized": False} for i in range(5)
        }
        | {str(len(WORDS)): {"content": "<e1>", "normalized": True, "special": False}}
    },
    "added, in the file": {
        "added_tokens_decoder": {str(len(WORDS)): {"content": "Blockbuster", "rstrip": True}}
    },
    "added, misnumbered": {"added_tokens_decoder": {"9": {"content": "film", "rstrip": True}}},
    "prefix": {"add_prefix_space": True},
    "no segments": {"model_input_names": ["input_ids", "attention_mask"]},
    "segments": {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
    "as text": {"split_special_tokens": True},
    "ends in files": {"add_bos_token": True, "add_eos_token": True},
}
CLASSES = [
    *("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast"),
    *("ElectraTokenizer", "ElectraTokenizerFast", "PreTrainedTokenizerFast", "GPT2Tokenizer", None),
    "DPRQuestionEncoderTokenizer",
]


def wordpiece() -> RustTokenizer:
    engine = wordpiece_engine({word: i for i, word in enumerate(WORDS)}, bert_normalizer(False))
    frame_as_bert(engine)
    engine.add_special_tokens(WORDS[:5])
    engine.add_tokens([AddedToken("Blockbuster", single_word=True)])
    return engine


def byte_level() -> RustTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "go", "Ġgo", "<|endoftext|>"])}
    engine = byte_level_engine(vocabulary, [("g", "o"), ("Ġ", "go")])
    # What the class does not read from the file.
    engine.normalizer = normalizers.Lowercase()
    engine.add_special_tokens(["<|endoftext|>"])
    return engine


def write(folder: Path, engine: RustTokenizer, settings: dict[str, Any], kind: str | None) -> Path:
    folder.mkdir()
    engine.save(str(folder / "tokenizer.json"))
    # No class: that of the model.
    named = {} if kind is None else {"tokenizer_class": kind}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **named}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return folder


def check_same(ours: Tokenizer, folder: Path) -> None:
    """All ids of texts and pairs, and the segments that a model gets."""
    theirs = AutoTokenizer.from_pretrained(folder)
    assert [e.ids for e in ours.encode(TEXTS)] == theirs(TEXTS)["input_ids"]
    pairs, expected = ours.encode(*PAIRS), theirs(*PAIRS)
    assert [e.ids for e in pairs] == expected["input_ids"]
    plain = [[0] * len(e.ids) for e in pairs]
    if ours.engine.num_special_tokens_to_add(is_pair=True):
        assert [e.segments for e in pairs] == expected.get("token_type_ids", plain)


CASES = [
    (name, kind)
    for name in SETTINGS
    for kind in CLASSES
    # Its ids are those of another vocabulary; and a file with a token of that id is refused.
    if not (kind == "GPT2Tokenizer" and name.startswith("added"))
    if (name, kind) != ("added", "PreTrainedTokenizerFast")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_ids_and_segments_are_those_of_transformers_before_and_after_saving(
    tmp_path: Path, name: str, kind: str | None
) -> None:
    engine = byte_level() if kind == "GPT2Tokenizer" else wordpiece()
    folder = write(tmp_path / "theirs", engine, SETTINGS[name], kind)
    ours = load_tokenizer(folder)
    check_same(ours, folder)
    saved = tmp_path / "ours"
    saved.mkdir()
    ours.save(saved)
    (saved / "config.json").write_bytes((folder / "config.json").read_bytes())
    check_same(ours, saved)
    check_same(load_tokenizer(saved), saved)


@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("added, ")])
@pytest.mark.parametrize(
    "kind", ["BertTokenizer", "DistilBertTokenizerFast", "DPRContextEncoderTokenizer", None]
)
def test_a_bare_vocabulary_gives_the_ids_of_transformers(
    tmp_path: Path, name: str, kind: str | None
) -> None:
    # Uncased, as transformers takes for granted where no setting says so.
    settings = {"do_lower_case": True, **SETTINGS[name]}
    folder = write(tmp_path / "theirs", wordpiece(), settings, kind)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    ours = load_tokenizer(folder)
    check_same(ours, folder)
    saved = tmp_path / "ours"
    saved.mkdir()
    ours.save(saved)
    check_same(load_tokenizer(saved), folder)


@pytest.mark.parametrize("name", ["none", "prefix", "ends in files", "extra", "ends"])
def test_bare_merges_give_the_ids_of_transformers(tmp_path: Path, name: str) -> None:
    engine = byte_level()
    folder = write(tmp_path / "theirs", engine, SETTINGS[name], "GPT2Tokenizer")
    (folder / "tokenizer.json").unlink()
    engine.model.save(str(folder))
    check_same(load_tokenizer(folder), folder)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ("vocab.txt", "BertJapaneseTokenizer"),
        ("vocab.txt", "MPNetTokenizerFast"),
        ("vocab.txt", "GPT2Tokenizer"),
        ("vocab.json", "BlenderbotTokenizer"),
    ],
)
@pytest.mark.parametrize("place", ["tokenizer_config.json", "config.json"])
def test_bare_files_of_another_class_are_refused_by_name(
    tmp_path: Path, files: str, kind: str, place: str
) -> None:
    (tmp_path / place).write_text(json.dumps({"tokenizer_class": kind}))
    (tmp_path / files).write_text("\n".join(WORDS) if files == "vocab.txt" else "{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=f"{kind.removesuffix('Fast')}, but without"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "kind", ["BertTokenizer", "MobileBertTokenizerFast", "XLMRobertaTokenizer"]
)
def test_a_class_that_the_file_cannot_be_of_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "theirs", byte_level(), {}, kind)
    name = kind.removesuffix("Fast")
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: a BPE, but .* {name}"):
        load_tokenizer(folder)


def made(kind: str, **settings: Any) -> Any:
    """A tokenizer of transformers with a vocabulary of a few words."""
    if kind == "XLMRobertaTokenizer":
        pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581go", *string.ascii_letters]
        scores = [(piece, -float(i)) for i, piece in enumerate([*pieces, "<mask>"])]
        return XLMRobertaTokenizer(vocab=scores, **settings)
    vocabulary = byte_level().get_vocab(with_added_tokens=True)
    for token in ("<s>", "</s>", "<unk>", "<pad>", "<mask>"):
        vocabulary[token] = len(vocabulary)
    merges = [("g", "o"), ("\u0120", "go")]
    return getattr(transformers, kind)(vocab=vocabulary, merges=merges, **settings)


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": True}, {"add_prefix_space": False}])
@pytest.mark.parametrize(
    "kind",
    [
        *("RobertaTokenizer", "BartTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"),
        "XLMRobertaTokenizer",
    ],
)
def test_a_file_that_agrees_with_its_class_is_read(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    made(kind, **settings).save_pretrained(tmp_path / "theirs")
    ours = load_tokenizer(tmp_path / "theirs")
    assert ours.settings["tokenizer_class"] == kind.replace("Bart", "Roberta")
    check_same(ours, tmp_path / "theirs")
    saved = tmp_path / "ours"
    saved.mkdir()
    ours.save(saved)
    check_same(load_tokenizer(saved), saved)
    # As an older version of transformers wrote it, or another program: the settings count.
    path = tmp_path / "theirs" / "tokenizer_config.json"
    entries = json.loads(path.read_text())
    entries["add_prefix_space"] = not entries.get("add_prefix_space")
    path.write_text(json.dumps(entries))
    check_same(load_tokenizer(tmp_path / "theirs"), tmp_path / "theirs")


@pytest.mark.parametrize("kind", ["RobertaTokenizer", "GPTNeoXTokenizer", "XLMRobertaTokenizer"])
@pytest.mark.parametrize("change", ["normalizer", "post_processor", "model"])
def test_a_file_that_its_class_would_not_build_is_built_anew(
    tmp_path: Path, kind: str, change: str
) -> None:
    made(kind).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text())
    if change == "model":
        # The unknown token of XLM-R is the fourth, and byte-level BPE has none.
        parts["model"] |= {"unk_id": 4} if kind == "XLMRobertaTokenizer" else {"unk_token": "go"}
    elif change == "normalizer":
        parts["normalizer"] = {"type": "Lowercase"}
    else:
        framed = processors.TemplateProcessing(single="$A go", special_tokens=[("go", 5)])
        parts["post_processor"] = json.loads(framed.__getstate__())
    path.write_text(json.dumps(parts))
    check_same(load_tokenizer(tmp_path), tmp_path)
    config = tmp_path / "tokenizer_config.json"
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps({**json.loads(config.read_text()), **plain}))
    check_same(load_tokenizer(tmp_path), tmp_path)


NAMES = sorted({n for n in dir(transformers) if n.endswith("Tokenizer")} | {"Phi3Tokenizer"})
#: Not the helpers of some, nor those whose libraries are missing, nor one that reads other files.
EVERY = [
    name
    for name in NAMES
    if PreTrainedTokenizerBase in getattr(transformers, name).__mro__ and name != "MarianTokenizer"
]


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"add_prefix_space": True}])
@pytest.mark.parametrize("words", [True, False])
def test_no_class_of_transformers_gives_other_ids(
    tmp_path: Path, words: bool, settings: dict[str, Any]
) -> None:
    """Each is read with its own ids, or refused."""
    folder = write(tmp_path / "theirs", wordpiece() if words else byte_level(), settings, None)
    read = []
    for kind in EVERY:
        entries = {"tokenizer_class": kind, **settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(entries))
        try:
            ours = load_tokenizer(folder)
        except CheckpointError:
            continue
        check_same(ours, folder)
        read.append(kind)
    assert ("BertTokenizer" if words else "GPT2Tokenizer") in read


def test_the_kind_of_the_model_alone_says_nothing_where_the_file_is_of_another(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "theirs", byte_level(), {}, None)
    assert load_tokenizer(folder).decode(load_tokenizer(folder).encode(["go"])[0].ids) == "go"


@pytest.mark.parametrize("wrapped", [False, True])
def test_segments_of_bert_processing_are_dropped_too(tmp_path: Path, wrapped: bool) -> None:
    engine = wordpiece()
    bert = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    engine.post_processor = processors.Sequence([bert]) if wrapped else bert
    folder = write(tmp_path / "theirs", engine, {}, "PreTrainedTokenizerFast")
    check_same(load_tokenizer(folder), folder)
    # A checkpoint of ours was trained with them, if it is from before we wrote `model_input_names`.
    (folder / "pretune.json").write_text("{}")
    assert max(load_tokenizer(folder).encode(*PAIRS)[0].segments) == 1


@pytest.mark.parametrize("missing", ["[UNK]", "<oov>"])
def test_a_vocabulary_without_the_unknown_token_is_refused(tmp_path: Path, missing: str) -> None:
    engine = RustTokenizer(models.WordPiece({"a": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="a"))  # noqa: S106
    folder = write(tmp_path / "theirs", engine, {"unk_token": missing}, "BertTokenizer")
    with pytest.raises(CheckpointError, match=rf"json: not a BERT vocabulary: .*\{missing[:3]}"):
        load_tokenizer(folder)


def test_an_older_checkpoint_of_ours_that_did_not_follow_its_settings_is_refused(
    tmp_path: Path,
) -> None:
    """Nothing says whether the model knows the ids of the file or those of the settings."""
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {**names, "do_lower_case": False}
    folder = write(tmp_path / "ours", wordpiece(), settings, "BertTokenizer")
    (folder / "pretune.json").write_text("{}")
    (good,) = load_tokenizer(folder).encode(["Good"])
    settings["do_lower_case"] = True
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**settings, "tokenizer_class": "BertTokenizer"}))
    with pytest.raises(CheckpointError, match="ask for another tokenizer than this file has"):
        load_tokenizer(folder)
    path.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    assert load_tokenizer(folder).encode(["Good"])[0] == good


def test_new_tokens_of_an_older_checkpoint_of_ours_are_kept(tmp_path: Path) -> None:
    """It kept a list in the settings that lacked them."""
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = {**SETTINGS["added, in the file"], **names, "do_lower_case": False}
    folder = write(tmp_path / "ours", wordpiece(), settings, "BertTokenizer")
    engine = wordpiece()
    engine.add_tokens(["<new>"])
    engine.save(str(folder / "tokenizer.json"))
    (folder / "pretune.json").write_text("{}")
    assert load_tokenizer(folder).encode(["<new>"])[0].ids == [2, len(WORDS) + 1, 3]


def test_new_tokens_are_in_the_list_that_is_saved(tmp_path: Path) -> None:
    settings = SETTINGS["added, in the file"]
    ours = load_tokenizer(write(tmp_path / "theirs", wordpiece(), settings, "BertTokenizer"))
    add_tokens(ours, ["<e1>"])
    ours.save(tmp_path / "theirs")
    check_same(ours, tmp_path / "theirs")


def test_an_engine_that_its_class_would_not_build_is_saved_under_the_plain_class(
    tmp_path: Path,
) -> None:
    ours = load_tokenizer(write(tmp_path / "theirs", wordpiece(), {}, "BertTokenizer"))
    ours.engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="$A [SEP]:1 $B:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    ours.save(tmp_path / "theirs")
    check_same(ours, tmp_path / "theirs")
    check_same(load_tokenizer(tmp_path / "theirs"), tmp_path / "theirs")
