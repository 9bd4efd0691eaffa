"""Encoding, truncation, loading and saving."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

TEXTS = ["The good film!", "电影好看 unaffable", "", "Héllo, wörld 😀 [MASK]"]
WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=12)


@pytest.fixture(scope="module")
def tiny(tiny_vocab_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_vocab_folder)


@pytest.fixture(scope="module")
def theirs(tiny_vocab_folder: Path) -> BertTokenizer:
    return BertTokenizer.from_pretrained(str(tiny_vocab_folder))


class TestPairs:
    def test_layout(self, tiny):
        encoded = tiny.encode(["good film"], ["bad"])[0]
        tokens = ["[CLS]", "good", "film", "[SEP]", "bad", "[SEP]"]
        assert (tiny.tokens(encoded.ids), encoded.segments) == (tokens, [0, 0, 0, 0, 1, 1])

    def test_offsets_count_in_each_text(self, tiny):
        encoded = tiny.encode(["good film"], ["bad"])[0]
        assert encoded.offsets == [(0, 0), (0, 4), (5, 9), (0, 0), (0, 3), (0, 0)]

    def test_texts_of_another_number_are_refused(self, tiny):
        with pytest.raises(ValueError, match="longer"):
            tiny.encode(["a"], ["b", "c"])


def cut_slowly(first: list[str], second: list[str], room: int) -> tuple[list[str], list[str]]:
    """Token by token from the longer; of equals, from the one that was not longer at first."""
    first, second = list(first), list(second)
    on_a_tie = first if len(first) <= len(second) else second
    while len(first) + len(second) > room:
        longer = max(first, second, key=len) if len(first) != len(second) else on_a_tie
        longer.pop()
    return first, second


class TestTruncation:
    @given(words=WORDS, max_length=st.integers(2, 16))
    def test_single_text_keeps_its_beginning(self, tiny, words, max_length):
        encoded = tiny.encode([" ".join(words)], max_length=max_length)[0]
        assert tiny.tokens(encoded.ids) == ["[CLS]", *words[: max_length - 2], "[SEP]"]

    @given(first=WORDS, second=WORDS, max_length=st.integers(3, 28))
    def test_pair_is_cut_longest_first(self, tiny, first, second, max_length):
        encoded = tiny.encode([" ".join(first)], [" ".join(second)], max_length=max_length)[0]
        a, b = cut_slowly(first, second, max_length - 3)
        assert tiny.tokens(encoded.ids) == ["[CLS]", *a, "[SEP]", *b, "[SEP]"]

    def test_pairs_of_all_lengths_are_cut_longest_first(self, tiny):
        lengths = list(itertools.product(range(8), range(8)))
        texts = [[list("abcdefg")[:count] for count in pair] for pair in lengths]
        firsts, seconds = ([" ".join(pair[i]) for pair in texts] for i in (0, 1))
        for max_length in range(3, 16):
            found = tiny.encode(firsts, seconds, max_length=max_length)
            for (first, second), encoded in zip(texts, found, strict=True):
                a, b = cut_slowly(first, second, max_length - 3)
                assert tiny.tokens(encoded.ids) == ["[CLS]", *a, "[SEP]", *b, "[SEP]"]

    @given(first=WORDS, second=WORDS, max_length=st.integers(3, 28))
    def test_pair_is_cut_as_by_transformers(self, tiny, theirs, first, second, max_length):
        texts = [" ".join(first)], [" ".join(second)]
        encoded = tiny.encode(*texts, max_length=max_length)[0]
        expected = theirs(
            *texts,
            truncation="longest_first",
            max_length=max_length,
            return_offsets_mapping=True,
        )
        assert [encoded.ids] == expected["input_ids"]
        assert [encoded.segments] == expected["token_type_ids"]
        assert [encoded.offsets] == expected["offset_mapping"]

    @given(first=WORDS, second=WORDS, max_length=st.integers(3, 28))
    def test_flag_says_whether_tokens_were_cut(self, tiny, first, second, max_length):
        encoded = tiny.encode([" ".join(first)], [" ".join(second)], max_length=max_length)[0]
        assert encoded.truncated == (len(first) + len(second) + 3 > max_length)

    def test_exact_fit_is_not_cut(self, tiny):
        assert not tiny.encode(["a b c"], max_length=5)[0].truncated

    def test_next_call_is_not_cut(self, tiny):
        tiny.encode(["a b c d"], max_length=3)
        assert len(tiny.encode(["a b c d"])[0].ids) == 6

    def test_special_token_in_a_text_is_cut_like_any_other(self, tiny):
        encoded = tiny.encode(["a b [SEP] c"], max_length=4)[0]
        assert tiny.tokens(encoded.ids) == ["[CLS]", "a", "b", "[SEP]"]

    @pytest.mark.parametrize(("second", "special"), [(None, 2), (["b"], 3)])
    def test_no_room_for_special_tokens_is_refused(self, tiny, second, special):
        with pytest.raises(ValueError, match=f"no room for {special} special"):
            tiny.encode(["a"], second, max_length=special - 1)

    def test_no_special_tokens_without_a_template(self):
        engine = RustTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))  # noqa: S106
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
        encoded = Tokenizer(engine, {}).encode(["a a a"], ["b b"], max_length=3)[0]
        assert encoded.ids == [0, 0, 1]

    @pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does, in KiB")
    def test_two_long_texts_take_little_memory(self, tiny):
        # The engine's own truncation makes n * m encodings of what it cuts off: gigabytes here.
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tiny.encode(["a " * 2000], ["b " * 2000], max_length=16)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


class TestVocabulary:
    def test_size_counts_every_line(self, tiny, tiny_vocab_folder):
        lines = (tiny_vocab_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        assert tiny.vocab_size == len(lines)

    def test_special_ids_are_lines_of_the_file(self, tiny):
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        assert [tiny.special_id(name) for name in names] == [0, 1, 2, 3, 4]

    def test_unknown_special_name_has_no_id(self, tiny):
        assert tiny.special_id("bos_token") is None

    def test_decode_joins_pieces(self, tiny):
        ids = tiny.encode(["unaffable film"])[0].ids
        assert tiny.decode(ids) == "unaffable film"

    def test_decode_can_show_special_tokens(self, tiny):
        ids = tiny.encode(["film"])[0].ids
        assert tiny.decode(ids, skip_special=False) == "[CLS] film [SEP]"

    def test_id_out_of_the_vocabulary_is_shown(self, tiny):
        assert tiny.tokens([99_999]) == ["<99999>"]

    def test_windows_line_ends_and_mark(self, tiny_vocab_folder, tmp_path, tiny):
        raw = (tiny_vocab_folder / "vocab.txt").read_bytes()
        (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n"))
        loaded = load_tokenizer(tmp_path)
        assert loaded.engine.get_vocab() == tiny.engine.get_vocab()

    def test_last_line_needs_no_line_end(self, tiny_vocab_folder, tmp_path, tiny):
        raw = (tiny_vocab_folder / "vocab.txt").read_bytes()
        (tmp_path / "vocab.txt").write_bytes(raw.rstrip(b"\n"))
        assert load_tokenizer(tmp_path).vocab_size == tiny.vocab_size


def write_vocabulary(folder: Path, *more: str) -> None:
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", *more]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


class TestCase:
    @pytest.mark.parametrize(
        ("more", "lowercase"), [((), True), (("A",), False), (("##É",), False), (("<S>",), True)]
    )
    def test_is_told_from_the_words(self, tmp_path, more, lowercase):
        write_vocabulary(tmp_path, *more)
        assert load_tokenizer(tmp_path).settings["do_lower_case"] is lowercase

    def test_settings_beside_the_file_go_before_the_words(self, tmp_path):
        write_vocabulary(tmp_path, "A")
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.tokens(tokenizer.encode(["A"])[0].ids)[1] == "a"

    def test_argument_goes_before_the_settings(self, tmp_path):
        write_vocabulary(tmp_path, "A")
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        tokenizer = load_tokenizer(tmp_path, lowercase=False)
        assert tokenizer.tokens(tokenizer.encode(["A"])[0].ids)[1] == "A"


class TestPublishedJson:
    def test_padding_of_the_file_is_off(self, minilm):
        published = RustTokenizer.from_file(str(minilm / "tokenizer.json"))
        assert published.padding is not None, "the file no longer pads: this test needs another"
        assert len(load_tokenizer(minilm).encode(["hello"])[0].ids) == 3

    def test_truncation_of_the_file_is_off(self, minilm):
        published = RustTokenizer.from_file(str(minilm / "tokenizer.json"))
        assert published.truncation is not None, "the file no longer cuts: this test needs another"
        assert len(load_tokenizer(minilm).encode(["hello " * 1000])[0].ids) == 1002

    def test_file_itself_can_be_named(self, minilm):
        tokenizer = load_tokenizer(minilm / "tokenizer.json")
        assert tokenizer.special_id("cls_token") == 101

    def test_json_and_vocabulary_agree(self, minilm):
        from_json, bare = load_tokenizer(minilm), load_tokenizer(minilm / "vocab.txt")
        assert from_json.encode(TEXTS) == bare.encode(TEXTS)

    def test_long_form_of_a_special_token(self, tiny, tmp_path):
        tiny.engine.save(str(tmp_path / "tokenizer.json"))
        settings = {"cls_token": {"content": "[MASK]", "lstrip": False}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        assert load_tokenizer(tmp_path).special["cls_token"] == "[MASK]"  # noqa: S105


@pytest.fixture(params=["tiny", "tiny-cased", "minilm"])
def saved(request, tiny_vocab_folder, minilm, tmp_path) -> tuple[Tokenizer, Path]:
    source = minilm if request.param == "minilm" else tiny_vocab_folder
    lowercase = False if request.param == "tiny-cased" else None
    tokenizer = load_tokenizer(source, lowercase=lowercase)
    tokenizer.save(tmp_path)
    return tokenizer, tmp_path


class TestSave:
    def test_loads_again_as_it_was(self, saved):
        tokenizer, folder = saved
        again = load_tokenizer(folder)
        assert again.encode(TEXTS, TEXTS[::-1]) == tokenizer.encode(TEXTS, TEXTS[::-1])

    def test_keeps_the_special_tokens(self, saved):
        tokenizer, folder = saved
        assert load_tokenizer(folder).special == tokenizer.special

    def test_keeps_the_settings_it_was_published_with(self, saved):
        tokenizer, folder = saved
        again = load_tokenizer(folder).settings
        assert again.items() >= tokenizer.settings.items()

    def test_opens_in_transformers_with_the_same_ids(self, saved):
        tokenizer, folder = saved
        theirs = AutoTokenizer.from_pretrained(str(folder))
        assert theirs(TEXTS)["input_ids"] == [encoded.ids for encoded in tokenizer.encode(TEXTS)]

    def test_transformers_knows_the_special_tokens(self, saved):
        theirs = AutoTokenizer.from_pretrained(str(saved[1]))
        assert (theirs.pad_token, theirs.mask_token) == ("[PAD]", "[MASK]")


class TestErrors:
    def test_no_tokenizer(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no tokenizer here[\s\S]*vocab\.txt"):
            load_tokenizer(tmp_path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"gone\.txt: no tokenizer here"):
            load_tokenizer(tmp_path / "gone.txt")

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 1}', "\x00\x01"])
    def test_broken_tokenizer_json(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer\.json"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 100_000])
    @pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
    def test_broken_settings(self, tmp_path, name, content):
        write_vocabulary(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
    def test_setting_that_is_no_boolean(self, tmp_path, key):
        write_vocabulary(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: "no"}))
        with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: {key} must be"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("token", ["[UNK]", "[CLS]", "[SEP]"])
    def test_vocabulary_without_a_needed_token(self, tmp_path, token):
        lines = [line for line in ("[UNK]", "[CLS]", "[SEP]", "a") if line != token]
        (tmp_path / "vocab.txt").write_text("\n".join(lines))
        with pytest.raises(CheckpointError) as caught:
            load_tokenizer(tmp_path)
        assert f"no line {token}" in caught.value.message

    def test_vocabulary_without_pad_and_mask_is_fine(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\na\n")
        assert load_tokenizer(tmp_path).encode(["a"])[0].ids == [1, 3, 2]

    def test_vocabulary_that_is_not_utf8(self, tmp_path):
        (tmp_path / "vocab.txt").write_bytes("[UNK]\n[CLS]\n[SEP]\n好\n".encode("gb18030"))
        with pytest.raises(CheckpointError, match=r"vocab\.txt: not UTF-8"):
            load_tokenizer(tmp_path)

    def test_empty_vocabulary(self, tmp_path):
        (tmp_path / "vocab.txt").write_bytes(b"")
        with pytest.raises(CheckpointError, match="not a BERT vocabulary"):
            load_tokenizer(tmp_path)
