"""Training tokenizers: what comes out, against transformers and simpler programs."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer

from pretune.errors import DataError
from pretune.tokenizers.figures import measure_tokenizer
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import save_trained, train_tokenizer

WORDS = ["low", "lower", "lowest", "newer", "newest", "wide", "widest", "café", "Ärger", "123"]
TEXT = (
    " ".join(WORDS * 20)
    + "\nHello, world! It's here; they're there.\n  Two  spaces\tand\ta tab.\r\n"
    + "我们在北京看电影。电影很好！\n" * 10
    + "e\u0301 e\u0301 👩\u200d🔬 👍 한국어 日本語のテキスト \x00 \x07 \u2028 \x85 \ufeff \u3000\n"
)
ANY_TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.one_of(st.sampled_from(WORDS), st.text(max_size=3), st.sampled_from(" \n\t'.,")),
        max_size=20,
    ).map("".join),
    st.text(alphabet=sorted(set(TEXT)), max_size=60),
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>", "<|user|>")


def plain(text: str) -> bool:
    """Whether no special token is spelled out, which is one token in any case."""
    return not any(token in text for token in SPECIAL)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0].ids


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    return tokenizer.engine.get_vocab()


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    save_trained(tokenizer, folder)
    return folder


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "uncased": lambda: train_tokenizer([TEXT], "wordpiece", 400),
    "cased": lambda: train_tokenizer([TEXT], "wordpiece", 400, lowercase=False),
    "wordpiece+": lambda: train_tokenizer([TEXT], "wordpiece", 400, special=["<|user|>"]),
    "bpe": lambda: train_tokenizer([TEXT], "bpe", 400),
    "bpe+": lambda: train_tokenizer([TEXT], "bpe", 400, special=["<|user|>"]),
    "char": lambda: train_tokenizer([TEXT], "char"),
    "char+": lambda: train_tokenizer([TEXT], "char", special=["<|endoftext|>"]),
}


@pytest.fixture(scope="module", params=list(KINDS))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tokenizer, Path]:
    tokenizer = KINDS[request.param]()
    folder = saved(tokenizer, tmp_path_factory.mktemp("trained") / request.param)
    return request.param, tokenizer, folder


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return KINDS["bpe"]()


@pytest.fixture(scope="module")
def char() -> Tokenizer:
    return KINDS["char"]()


@pytest.fixture(scope="module")
def auto(trained: tuple[str, Tokenizer, Path]) -> object:
    return AutoTokenizer.from_pretrained(str(trained[2]))


@pytest.fixture(scope="module")
def wordpieces(tmp_path_factory) -> dict[bool, tuple[Tokenizer, BertTokenizer]]:
    found = {}
    for lowercase, kind in ((True, "uncased"), (False, "cased")):
        tokenizer = KINDS[kind]()
        folder = saved(tokenizer, tmp_path_factory.mktemp("bert") / kind)
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        vocab = {token: i for i, token in enumerate(lines[:-1])}
        found[lowercase] = (tokenizer, BertTokenizer(vocab=vocab, do_lower_case=lowercase))
    return found


@pytest.fixture(scope="module")
def gpt2(bpe, tmp_path_factory) -> GPT2Tokenizer:
    folder = saved(bpe, tmp_path_factory.mktemp("gpt2") / "bpe")
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines[1:]]
    return GPT2Tokenizer(vocab=vocab, merges=merges)


class TestSaved:
    @given(text=ANY_TEXT)
    def test_auto_tokenizer_gives_the_same_ids(self, trained, auto, text) -> None:
        assert auto(text)["input_ids"] == ids(trained[1], text)

    @given(text=ANY_TEXT, other=ANY_TEXT)
    def test_and_the_same_for_pairs(self, trained, auto, text, other) -> None:
        assume(other)  # transformers takes an empty second text for none
        (encoded,) = trained[1].encode([text], [other])
        theirs = auto(text, other)
        assert theirs["input_ids"] == encoded.ids
        if "token_type_ids" in theirs:
            assert theirs["token_type_ids"] == encoded.segments

    @given(text=ANY_TEXT)
    def test_auto_tokenizer_gives_the_same_text_back(self, trained, auto, text) -> None:
        found = ids(trained[1], text)
        assert auto.decode(found) == trained[1].decode(found, skip_special=False)

    @given(text=ANY_TEXT)
    def test_we_load_what_we_saved(self, trained, text) -> None:
        _, tokenizer, folder = trained
        again = load_tokenizer(folder)
        assert ids(again, text) == ids(tokenizer, text)
        assert again.special == tokenizer.special

    def test_special_tokens_are_found_in_text_by_both(self, trained, auto) -> None:
        _, tokenizer, _ = trained
        for token in tokenizer.engine.get_added_tokens_decoder().values():
            text = f"low{token.content}low"
            assert auto(text)["input_ids"] == ids(tokenizer, text)
            assert tokenizer.engine.token_to_id(token.content) in ids(tokenizer, text)

    def test_no_longest_length_is_written(self, trained) -> None:
        settings = json.loads((trained[2] / "tokenizer_config.json").read_text("utf-8"))
        assert "model_max_length" not in settings

    def test_ids_are_0_to_n(self, trained) -> None:
        _, tokenizer, _ = trained
        found = sorted(vocabulary(tokenizer).values())
        assert found == list(range(tokenizer.vocab_size))


class TestWordPiece:
    @given(text=ANY_TEXT)
    @pytest.mark.parametrize("lowercase", [True, False])
    def test_vocab_txt_means_to_bert_tokenizer_what_it_means_to_us(
        self, wordpieces, text, lowercase
    ) -> None:
        tokenizer, theirs = wordpieces[lowercase]
        assume(plain(text))
        assert theirs(text)["input_ids"] == ids(tokenizer, text)

    def test_special_tokens_come_first(self) -> None:
        found = vocabulary(KINDS["wordpiece+"]())
        assert [found[token] for token in (*SPECIAL[:5], "<|user|>")] == list(range(6))

    def test_chinese_is_split_into_characters(self) -> None:
        tokenizer = KINDS["uncased"]()
        tokens = tokenizer.tokens(ids(tokenizer, "北京电影abc很好"))
        assert tokens[1:5] == list("北京电影")
        assert tokens[-3:] == ["很", "好", "[SEP]"]
        assert not any(
            t.startswith("##") and t[2:] in "北京电影很好" for t in vocabulary(tokenizer)
        )

    def test_case_and_accents(self) -> None:
        uncased, cased = KINDS["uncased"](), KINDS["cased"]()
        assert ids(uncased, "CAFÉ") == ids(uncased, "cafe")
        assert ids(cased, "Ärger") != ids(cased, "ärger")
        assert "Ä" in vocabulary(cased)
        assert "ä" not in vocabulary(uncased)

    def test_merges_are_those_of_a_slow_bpe(self) -> None:
        """Sennrich et al. 2016, algorithm 1, on words with ##; ties by the order of the ids."""
        text = "low low low low low lower lower newest newest newest newest widest widest widest"
        tokenizer = train_tokenizer([text], "wordpiece", 5 + 17 + 8, min_frequency=1)
        words = [[w[0], *("##" + c for c in w[1:])] for w in text.split()]
        alphabet = sorted({c for w in words for c in w}, key=lambda t: (len(t), t))
        plain_form = {c.removeprefix("##") for c in alphabet}
        alphabet = [*sorted(plain_form), *(c for c in alphabet if len(c) > 1)]
        entries = [*SPECIAL[:5], *alphabet]
        while len(entries) < 5 + 17 + 8:
            counts: dict[tuple[int, int], int] = {}
            for word in words:
                for pair in itertools.pairwise(word):
                    key = (entries.index(pair[0]), entries.index(pair[1]))
                    counts[key] = counts.get(key, 0) + 1
            best = min(counts, key=lambda pair: (-counts[pair], pair))
            left, right = entries[best[0]], entries[best[1]]
            merged = left + right.removeprefix("##")
            entries.append(merged)
            for word in words:
                i = 0
                while i < len(word) - 1:
                    if word[i] == left and word[i + 1] == right:
                        word[i : i + 2] = [merged]
                    i += 1
        found = vocabulary(tokenizer)
        assert sorted(found, key=found.__getitem__) == entries


class TestByteLevel:
    @given(text=ANY_TEXT)
    def test_any_text_comes_back(self, bpe, text) -> None:
        assert bpe.decode(ids(bpe, text), skip_special=False) == text

    def test_all_bytes_come_back(self, bpe) -> None:
        # UTF-8 never has the bytes C0, C1 and F5 to FF; every other one is in some character.
        text = "".join(map(chr, [*range(0x800), *range(0x800, 0xD800, 61), 0xE000, 0xFFFF]))
        text += "".join(map(chr, range(0x10000, 0x110000, 4093)))
        used = set(text.encode())
        assert used == set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
        assert bpe.decode(ids(bpe, text)) == text

    @given(text=ANY_TEXT)
    def test_its_files_mean_to_gpt2_tokenizer_what_they_mean_to_us(self, bpe, gpt2, text) -> None:
        assert gpt2(text)["input_ids"] == ids(bpe, text)

    def test_the_first_ids_are_the_bytes_in_the_order_of_gpt2(self, bpe) -> None:
        found = vocabulary(bpe)
        visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        expected = [*map(chr, visible), *map(chr, range(0x100, 0x100 + 256 - len(visible)))]
        assert [found[c] for c in expected] == list(range(256))
        assert found["<|endoftext|>"] == bpe.vocab_size - 1
        assert bpe.special_id("eos_token") == bpe.special_id("bos_token") == bpe.vocab_size - 1

    def test_as_published(self, data_folder) -> None:
        """The same bytes have the same ids in the vocabulary that OpenAI published."""
        text = (data_folder / "vocab" / "gpt2" / "vocab.json").read_text(encoding="utf-8")
        theirs = json.loads(text)
        ours = vocabulary(train_tokenizer(["a"], "bpe", 257))
        assert {t: i for t, i in theirs.items() if i < 256} == {
            t: i for t, i in ours.items() if i < 256
        }


class TestCharacters:
    def test_ids_are_the_places_in_the_sorted_set(self, char) -> None:
        found = vocabulary(char)
        assert [found[c] for c in sorted(set(TEXT))] == list(range(len(set(TEXT))))
        assert found["[UNK]"] == len(set(TEXT))
        assert ids(char, "low\n") == [sorted(set(TEXT)).index(c) for c in "low\n"]

    @given(text=st.text(alphabet=sorted(set(TEXT)), max_size=80))
    def test_known_characters_come_back(self, char, text) -> None:
        assert char.decode(ids(char, text), skip_special=False) == text
        if plain(text):
            assert len(ids(char, text)) == len(text)

    @given(text=ANY_TEXT)
    def test_others_are_unknown_one_by_one(self, char, text) -> None:
        assume(plain(text))
        found, lost = vocabulary(char), char.special_id("unk_token")
        assert ids(char, text) == [found.get(c, lost) if len(c) == 1 else lost for c in text]

    def test_without_unk_others_are_refused(self, tmp_path: Path) -> None:
        tokenizer = train_tokenizer(["abc\n"], "char", unknown=False)
        assert vocabulary(tokenizer) == {"\n": 0, "a": 1, "b": 2, "c": 3}
        for each in (tokenizer, load_tokenizer(saved(tokenizer, tmp_path / "c"))):
            assert ids(each, "ab\nc") == [1, 2, 0, 3]
            with pytest.raises(DataError, match="characters outside of the vocabulary"):
                each.encode(["abd"])

    def test_rare_characters_can_be_left_out(self) -> None:
        tokenizer = train_tokenizer(["aaabbbccdde"], "char", alphabet_size=3)
        assert sorted(vocabulary(tokenizer)) == ["[UNK]", "a", "b", "c"]  # c and d tie


class TestSizes:
    @given(text=st.text(min_size=1, max_size=200), more=st.integers(0, 40))
    def test_never_more_than_asked_for_and_special_tokens_always(self, text, more) -> None:
        for kind, special in (("wordpiece", SPECIAL[:5]), ("bpe", SPECIAL[5:6]), ("char", "")):
            try:
                train_tokenizer([text], kind, 1, min_frequency=1)
                smallest = 1
            except DataError as error:
                if "no words" in str(error):
                    continue
                smallest = int(str(error).split("--vocab-size ")[1].split(".")[0])
            with_it = train_tokenizer([text], kind, smallest + more, min_frequency=1)
            found = vocabulary(with_it)
            assert smallest <= len(found) <= smallest + more
            assert set(special) <= set(found)
            with pytest.raises(DataError, match="too small"):
                train_tokenizer([text], kind, smallest - 1)

    def test_no_text_character_is_unknown(self) -> None:
        tokenizer = train_tokenizer(["ab"], "wordpiece", 100, characters_of=["xy 中"])
        assert tokenizer.tokens(ids(tokenizer, "x xy 中")) == [
            "[CLS]",
            "x",
            "x",
            "##y",
            "中",
            "[SEP]",
        ]

    def test_an_alphabet_that_is_limited(self) -> None:
        text = "ccc bbb aaa ab dd " + "e"
        tokenizer = train_tokenizer([text], "wordpiece", 12, alphabet_size=2, min_frequency=99)
        # a and b are four each, c three.
        assert set(vocabulary(tokenizer)) == {*SPECIAL[:5], "a", "b", "##a", "##b"}
        assert tokenizer.tokens(ids(tokenizer, "c ab"))[1:3] == ["[UNK]", "a"]

    @pytest.mark.parametrize("kind", ["wordpiece", "bpe", "char"])
    @pytest.mark.parametrize("texts", [[], [""], ["", ""]])
    def test_no_text(self, kind, texts) -> None:
        with pytest.raises(DataError, match="nothing to train on"):
            train_tokenizer(texts, kind)

    def test_white_space_has_no_words(self) -> None:
        with pytest.raises(DataError, match="no words"):
            train_tokenizer([" \n\t\x00"], "wordpiece")

    @pytest.mark.parametrize("kind", ["wordpiece", "bpe", "char"])
    @pytest.mark.parametrize("length", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
    def test_many_characters_without_a_space(self, kind, length) -> None:
        text = "".join(random.Random(0).choices("abcdefghij", k=length))
        tokenizer = train_tokenizer([text], kind, 300)
        assert tokenizer.vocab_size == {"wordpiece": 300, "bpe": 300, "char": 11}[kind]

    @pytest.mark.parametrize(
        ("kind", "options", "said"),
        [
            ("bpee", {}, "Did you mean 'bpe'"),
            ("bpe", {"lowercase": True}, "lowercase is for wordpiece"),
            ("bpe", {"alphabet_size": 10}, "256 bytes"),
            ("bpe", {"unknown": False}, "only char"),
            ("char", {"unknown": False, "alphabet_size": 3}, "no \\[UNK\\]"),
            ("char", {"special": [" "]}, "is empty"),
            ("wordpiece", {"special": ["a\nb"]}, "has a line break"),
            ("bpe", {"special": ["a", "b\r"]}, "has a line break"),
        ],
    )
    def test_options_that_do_not_go_together(self, kind, options, said) -> None:
        with pytest.raises(DataError, match=said):
            train_tokenizer(["a"], kind, **options)


PROGRAM = """
import json, sys
from pretune.tokenizers.train import train_tokenizer
texts = json.load(sys.stdin)
for kind in ("wordpiece", "bpe"):
    found = train_tokenizer(texts, kind, 600).engine
    model = json.loads(found.to_str())["model"]
    print(json.dumps([model["vocab"], model.get("merges")], sort_keys=True))
"""


def test_threads_and_the_order_of_texts_change_nothing() -> None:
    """Several processes, as the seeds of Rust's hash maps change with each."""
    rng = random.Random(1)
    syllables = [a + b for a in "bdfglmnprst" for b in "aeiou"]
    # Words of equal frequency make many ties.
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)] * 2
    rng.shuffle(words)
    texts = [" ".join(words[i : i + 20]) + " 中文" for i in range(0, len(words), 20)]
    found = set()
    for seed, threads in enumerate(("1", "2", "4")):
        random.Random(seed).shuffle(texts)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps(texts),
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1


class TestMeasure:
    def test_figures_by_hand(self) -> None:
        tokenizer = train_tokenizer(["ab"], "char")
        found = measure_tokenizer(tokenizer, ["abé\n", "中"])
        assert found.vocab_size == 3
        assert found.unknown == 3 / 5
        assert found.characters_per_token == 1.0
        assert found.bytes_per_token == 8 / 5
        assert found.first == found.longest == ()

    def test_entries_are_shown_as_text(self) -> None:
        tokenizer = train_tokenizer(["电影 电影 电影 the the"], "bpe", 300)
        found = measure_tokenizer(tokenizer, ["the line to be shown 电影\n" * 5])
        assert " 电影" in found.longest
        assert any("\\x" in token for token in found.first)
        assert len(found.examples) == 3
        assert "".join(found.examples[0][1]) == found.examples[0][0]

    def test_special_tokens_are_not_counted(self) -> None:
        tokenizer = train_tokenizer(["aa aa aa"], "wordpiece", 20)
        assert measure_tokenizer(tokenizer, ["aa aa"]).characters_per_token == 5 / 2
        assert measure_tokenizer(tokenizer, ["aa aa"]).first == ("aa",)


class TestUnigram:
    @pytest.fixture(scope="class")
    def unigram(self) -> Tokenizer:
        return train_tokenizer([TEXT], "unigram", 180)

    def test_transformers_gives_the_same_ids(self, unigram: Tokenizer, tmp_path: Path) -> None:
        theirs = AutoTokenizer.from_pretrained(saved(unigram, tmp_path / "unigram"))
        for text in [TEXT, "  Lowest\tprices ", "我们看电影", "ﬁne ｆｕｌｌ", "", "▁ é e\u0301"]:
            assert theirs(text)["input_ids"] == ids(unigram, text)
            assert theirs(text, "b")["input_ids"] == unigram.encode([text], ["b"])[0].ids

    def test_normalises_as_sentencepiece(self, unigram: Tokenizer) -> None:
        """nmt_nfkc: white space, compatibility characters, and what is left at the ends."""
        for text, same in (
            ("  low  lower\n", "low lower"),
            ("low\u3000lower", "low lower"),
            ("ｌｏｗ", "low"),
            ("low\x07er", "lower"),
        ):
            assert ids(unigram, text) == ids(unigram, same)
        assert unigram.decode(ids(unigram, "low lowest")) == "low lowest"

    def test_pieces_are_the_likeliest_together(self, unigram: Tokenizer) -> None:
        """By trying out every way to cut a word."""
        scores = dict(json.loads(unigram.engine.to_str())["model"]["vocab"])
        word = "▁lowest"

        def best(rest: str) -> float:
            starts = (i for i in range(1, len(rest) + 1) if rest[:i] in scores)
            return (
                max((scores[rest[:i]] + best(rest[i:]) for i in starts), default=float("-inf"))
                if rest
                else 0.0
            )

        cut = unigram.tokens(ids(unigram, "lowest"))[1:-1]
        assert "".join(cut) == word
        assert sum(scores[piece] for piece in cut) == pytest.approx(best(word))

    def test_special_tokens_come_first_and_size_is_kept(self) -> None:
        made = train_tokenizer([TEXT], "unigram", 150, special=["<|user|>"])
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|user|>"]
        assert made.tokens(range(6)) == tokens
        assert made.vocab_size <= 150
        assert made.special_id("mask_token") == 4

    def test_rare_characters_are_unknown(self) -> None:
        made = train_tokenizer([TEXT], "unigram", 60, alphabet_size=20)
        assert made.special_id("unk_token") in ids(made, "한")
        assert made.special_id("unk_token") not in ids(made, "low")

    def test_case(self) -> None:
        lower = train_tokenizer([TEXT], "unigram", 180, lowercase=True)
        assert ids(lower, "HELLO") == ids(lower, "hello")

    @pytest.mark.parametrize(("texts", "size"), [([""], 100), ([" \n"], 100), ([TEXT], 20)])
    def test_what_cannot_be_trained_on(self, texts: list[str], size: int) -> None:
        with pytest.raises(DataError):
            train_tokenizer(texts, "unigram", size)
