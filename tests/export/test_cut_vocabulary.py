from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from pretune.bundle.bundle import Bundle, load, save
from pretune.data.batch import PackedBatch
from pretune.errors import DataError
from pretune.export.cut_vocabulary import (
    UsedText,
    cut_tokenizer,
    cut_vocabulary,
    kept_tokens,
    texts_of,
    used_text,
)
from pretune.models.backbone import backbone_of
from pretune.models.heads.replaced import companion_of, shares_embeddings
from pretune.tasks.replaced_token.detect import DetectReplaced, ReplacedTokenOptions
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer
from tests.tasks.every_task import CASES, write

WORDS = ["good", "goodness", "film", "films", "filming", "bad", "badly", "unaffable", "China", "x1"]


def corpus(seed: int, count: int = 200) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 8))) for _ in range(count)]


def unigram() -> Tokenizer:
    engine = RustTokenizer(models.Unigram())
    engine.normalizer = normalizers.NFKC()
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    engine.train_from_iterator(
        [*corpus(1), "zebra quartz"],
        trainers.UnigramTrainer(
            vocab_size=60,
            special_tokens=["<unk>", "<s>"],
            unk_token="<unk>",  # noqa: S106
            show_progress=False,
        ),
    )
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", engine.token_to_id("<s>"))]
    )
    return Tokenizer(engine, {"unk_token": "<unk>", "bos_token": "<s>"})


def made(kind: str) -> Tokenizer:
    if kind == "unigram":
        return unigram()
    return train_tokenizer([*corpus(1), "zebra quartz"], kind, 320 if kind == "bpe" else 120)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "char"])
def test_the_texts_have_the_tokens_they_had(kind: str) -> None:
    tokenizer, texts = made(kind), corpus(2, 20)[:3]
    used = {i for e in tokenizer.encode(texts) for i in e.ids}
    kept = kept_tokens(tokenizer, used)
    smaller = cut_tokenizer(tokenizer, kept)
    # A vocabulary of characters has nothing that spelling could do without.
    assert smaller.vocab_size == len(kept)
    assert (len(kept) < tokenizer.vocab_size) == (kind != "char")
    for pair in (None, texts[::-1]):
        old, new = tokenizer.encode(texts, pair), smaller.encode(texts, pair)
        assert [tokenizer.tokens(e.ids) for e in old] == [smaller.tokens(e.ids) for e in new]
        assert [e.segments for e in old] == [e.segments for e in new]
        assert [[kept[i] for i in e.ids] for e in new] == [e.ids for e in old]
    # The order stays, and so do special tokens.
    names = tokenizer.tokens(kept)
    assert smaller.tokens(range(len(kept))) == names
    assert {*tokenizer.special.values()} <= {*names}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_what_was_not_seen_can_still_be_spelled(kind: str) -> None:
    tokenizer = made(kind)
    kept = kept_tokens(tokenizer, {i for e in tokenizer.encode(["bad"]) for i in e.ids})
    smaller = cut_tokenizer(tokenizer, kept)
    unknown = smaller.special_id("unk_token")
    for text in ("zebra quartz", "goodness films"):
        (old,), (new,) = tokenizer.encode_bare([text]), smaller.encode_bare([text])
        assert unknown not in new.ids
        assert len(new.ids) > len(old.ids) or text != "goodness films"
        assert smaller.decode(new.ids) == tokenizer.decode(old.ids)


def test_a_template_may_know_tokens_that_it_never_uses() -> None:
    tokenizer = unigram()
    engine = tokenizer.engine
    names = [("<s>", engine.token_to_id("<s>")), ("film", engine.token_to_id("▁film"))]
    engine.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=names)
    kept = kept_tokens(tokenizer, {i for e in tokenizer.encode(["bad"]) for i in e.ids})
    smaller = cut_tokenizer(tokenizer, kept)
    (old,), (new,) = tokenizer.encode(["bad"]), smaller.encode(["bad"])
    assert "▁film" not in smaller.engine.get_vocab()
    assert smaller.tokens(new.ids) == tokenizer.tokens(old.ids)


def test_ideographs_within_words_are_not_kept_where_none_can_be(tiny_folder: Path) -> None:
    engine = json.loads(load_tokenizer(tiny_folder).engine.to_str())
    vocabulary = engine["model"]["vocab"]
    for token in ("##好", "##é", "É"):
        vocabulary[token] = len(vocabulary)
    tokenizer = Tokenizer(RustTokenizer.from_str(json.dumps(engine)), {"unk_token": "[UNK]"})
    names = tokenizer.tokens(kept_tokens(tokenizer, set()))
    assert "好" in names
    assert "##x" in names
    assert "##好" not in names


@pytest.fixture
def classifier(tiny_folder: Path, tmp_path: Path) -> Bundle:
    return CASES["classify"].bundle(tiny_folder, tmp_path)


def test_the_model_gives_the_same_logits_on_the_texts(classifier: Bundle, tmp_path: Path) -> None:
    texts = ["the good film 12", "bad bad", "好"]

    def logits() -> torch.Tensor:
        encoded = classifier.tokenizer.encode(texts)
        batch = PackedBatch.of([e.ids for e in encoded], [e.segments for e in encoded])
        with torch.inference_mode():
            return classifier.model(batch)

    before, old = logits(), classifier.tokenizer
    ids = [e.ids for e in old.encode(texts)]
    held_back = cut_vocabulary(classifier, UsedText(texts, set()))
    assert torch.equal(logits(), before)
    assert held_back.words == 0
    rows = len(classifier.backbone.embeddings.tokens.weight)
    assert rows == classifier.tokenizer.vocab_size < old.vocab_size
    # transformers reads the same numbers.
    (tmp_path / "small").mkdir()
    save(classifier, tmp_path / "small")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "small")
    own = [e.ids for e in classifier.tokenizer.encode(texts)]
    assert theirs(texts)["input_ids"] == own != ids
    again = load(tmp_path / "small")
    assert [e.ids for e in again.tokenizer.encode(texts)] == own


def test_a_masked_lm_predicts_among_what_is_left(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES["mask_lm_each"].bundle(tiny_folder, tmp_path)
    records = CASES["mask_lm_each"].records(5)
    cut_vocabulary(bundle, UsedText(texts_of(records.rows), set()))
    assert bundle.model.bias.shape == (bundle.tokenizer.vocab_size,)
    (encoded,) = bundle.tokenizer.encode(["good film"])
    with torch.inference_mode():
        assert bundle.model(PackedBatch.of([encoded.ids])).shape[1] == bundle.tokenizer.vocab_size


@pytest.mark.parametrize("shared", [True, False])
def test_a_generator_loses_the_same_tokens(shared: bool, tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = ReplacedTokenOptions(max_length=16, share_embeddings=shared)
    bundle = load(tiny_folder, task=DetectReplaced(options))
    generator = companion_of(bundle.model)
    assert generator is not None
    assert shares_embeddings(bundle.model) == shared
    texts = ["the good film"]

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        batch = PackedBatch.of([e.ids for e in bundle.tokenizer.encode(texts)])
        with torch.inference_mode():
            return bundle.model(batch).logits, generator(batch)

    before = outputs()
    kept = kept_tokens(bundle.tokenizer, {i for e in bundle.tokenizer.encode(texts) for i in e.ids})
    cut_vocabulary(bundle, UsedText(texts, set()))
    after = outputs()
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], before[1][:, kept])
    assert shares_embeddings(bundle.model) == shared
    (tmp_path / "small").mkdir()
    save(bundle, tmp_path / "small")
    again = companion_of(load(tmp_path / "small").model)
    assert again is not None
    assert len(backbone_of(again).embeddings.tokens.weight) == len(kept)


def test_a_model_for_gaps_is_cut_by_texts_without_gaps(tiny_folder: Path, tmp_path: Path) -> None:
    bundle = CASES["mask_lm"].bundle(tiny_folder, tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "the good film"}\n{"text": "bad"}\n', encoding="utf-8")
    used = used_text(bundle, [str(data)])
    assert used.texts == ["the good film", "bad"]
    cut_vocabulary(bundle, used)
    assert "film" in bundle.tokenizer.engine.get_vocab()
    assert "##able" not in bundle.tokenizer.engine.get_vocab()


def test_text_that_is_held_back_is_counted(classifier: Bundle) -> None:
    # Every tenth text has a word that no other has: "film" by itself is an entry, elsewhere unused.
    # Labels, which are the same in many records, count once.
    texts = [("film" if (i + 1) % 10 == 0 else "the") + " good" + i * " a" for i in range(30)]
    held_back = cut_vocabulary(classifier, UsedText([*texts, *["bad"] * 30], set()))
    assert held_back.words == 3
    assert held_back.changed == pytest.approx(1 / 3)
    assert held_back.unknown == 0


def test_no_text(classifier: Bundle) -> None:
    with pytest.raises(DataError, match="no text"):
        cut_vocabulary(classifier, UsedText([" "], set()))


def test_texts_in_any_cell() -> None:
    rows: list[dict[str, Any]] = [{"a": "x", "b": [{"content": "y"}, ["z"]], "c": 3, "d": None}]
    assert texts_of(rows) == ["x", "y", "z"]


def test_the_command_line(classifier: Bundle, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from pretune.cli.app import app

    (tmp_path / "run").mkdir()
    save(classifier, tmp_path / "run")
    data = str(write(CASES["classify"].rows(12), tmp_path / "data.jsonl"))
    given = ["prune", str(tmp_path / "run"), "--vocab", data, "--data", data, "--json"]
    done = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "small")])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert values["after"]["tokens"] < values["before"]["tokens"]
    assert values["after"]["metrics"] == pytest.approx(values["before"]["metrics"])
    assert load(tmp_path / "small").tokenizer.vocab_size == values["after"]["tokens"]
