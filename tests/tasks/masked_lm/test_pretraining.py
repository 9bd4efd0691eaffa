"""The recipes for language models from scratch, and going on with one that is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import pretune
from pretune.bundle.bundle import load
from pretune.corpus.pipeline import Settings, prepare
from pretune.errors import CheckpointError, DataError, RecipeError
from pretune.recipe.recipe import Recipe
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.train import train_tokenizer
from pretune.training.data import read_data, tokenizer_for

ENGLISH = "It was a dark night. The rain fell, and nobody was on the road.\n" * 60
CHINESE = "话说宝玉走进园子，看见黛玉。黛玉笑道：你来了。\n" * 80
SMALL = {
    "model.config": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 32},
    "task.max_length": 32,
    "train.max_steps": 12,
    "train.warmup": 2,
    "train.eval_every": 6,
    "train.device": "cpu",
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(ENGLISH, encoding="utf-8")
    return path


class TestNovels:
    @pytest.mark.parametrize(("name", "text"), [("novel", ENGLISH), ("novel-zh", CHINESE)])
    def test_a_book_is_enough(self, name: str, text: str, tmp_path: Path) -> None:
        path = tmp_path / "book.txt"
        path.write_text(text, encoding="utf-8")
        own = {"data.train": str(path), "output": str(tmp_path / "run")}
        if name == "novel":
            own["model.train_tokenizer.vocab_size"] = 290
        pretune.train(name, {**SMALL, **own}, quiet=True)
        lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        actual = [json.loads(line) for line in lines]
        losses = [entry["validation/loss"] for entry in actual if "validation/loss" in entry]
        assert losses[-1] < losses[0]
        bundle = load(tmp_path / "run")
        ids = bundle.tokenizer.engine.encode(text).ids
        assert bundle.tokenizer.decode(ids) == text
        if name == "novel-zh":
            assert len(ids) == len(text)
        (written,) = pretune.generate(bundle, text[:5], max_new_tokens=4, device="cpu")
        assert written.tokens

    def test_the_chinese_one_is_small(self, tmp_path: Path) -> None:
        """Five to ten million parameters with the characters of a long novel."""
        letters = [chr(0x4E00 + i) for i in range(4500)]
        train_tokenizer(["".join(letters)], "char").save(tmp_path)
        model = Recipe.load("novel-zh").model
        actual = load(model.source, bare=True, tokenizer=tmp_path, config=model.config)
        assert 5e6 < sum(p.numel() for p in actual.model.parameters()) < 10e6

    def test_a_tokenizer_that_is_named_comes_first(self, book: Path, tmp_path: Path) -> None:
        folder = tmp_path / "own"
        folder.mkdir()
        train_tokenizer([ENGLISH], "char").save(folder)
        recipe = Recipe.load("novel", {"data.train": str(book), "model.tokenizer": str(folder)})
        train, _ = read_data(recipe)
        assert tokenizer_for(recipe, train) == str(folder)

    def test_so_does_that_of_a_corpus(self, book: Path, tmp_path: Path) -> None:
        folder = tmp_path / "own"
        folder.mkdir()
        train_tokenizer([ENGLISH], "char").save(folder)
        prepare([book], folder, tmp_path / "corpus", workers=1)
        own = {"data.train": str(tmp_path / "corpus"), "data.validation": None}
        recipe = Recipe.load("novel", own)
        train, _ = read_data(recipe)
        actual = tokenizer_for(recipe, train)
        assert actual.cuts_as(load_tokenizer(folder))  # type: ignore[union-attr]

    def test_one_that_cannot_be_trained(self, book: Path, tmp_path: Path) -> None:
        own = {"data.train": str(book), "output": str(tmp_path / "run")}
        with pytest.raises(DataError, match="too small"):
            pretune.train("novel", {**own, "model.train_tokenizer.vocab_size": 10}, quiet=True)
        assert not (tmp_path / "run").exists()
        with pytest.raises(RecipeError, match="kind"):
            pretune.train("novel", {**own, "model.train_tokenizer.kind": "byte"}, quiet=True)


class TestGpt2:
    def test_has_the_settings_of_the_literature(self) -> None:
        """GPT-3's optimizer (Brown et al. 2020, appendix B, table 2.1) on GPT-2's size."""
        recipe = Recipe.load("gpt2-pretrain")
        train = recipe.train
        assert (train.beta1, train.beta2, train.weight_decay, train.clip) == (0.9, 0.95, 0.1, 1.0)
        assert (train.schedule, train.floor, train.learning_rate) == ("cosine", 0.1, 6e-4)
        assert train.batch_tokens == 2**19
        with torch.device("meta"):
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
        assert recipe.model.source == "gpt2-small"
        assert recipe.task.max_length == model.config.n_positions

    def test_its_tokenizer_needs_the_hub_or_a_folder(self, book: Path, tmp_path: Path) -> None:
        own = {
            "data.train": str(book),
            "data.validation": 0.1,
            "data.max_chars": 10**6,
            "output": str(tmp_path / "run"),
        }
        with pytest.raises(CheckpointError, match="could not be fetched from the Hugging Face Hub"):
            pretune.train("gpt2-pretrain", {**SMALL, **own}, quiet=True)
        folder = tmp_path / "own"
        folder.mkdir()
        train_tokenizer([ENGLISH], "bpe", 290).save(folder)
        own |= {"model.tokenizer": str(folder), "train.accumulate": 2, "train.batch_tokens": 256}
        result = pretune.train("gpt2-pretrain", {**SMALL, **own}, quiet=True)
        rows = load(result.folder).backbone.config.size("vocab_size")
        assert rows % 64 == 0

    def test_its_end_of_text_is_known_without_a_file_that_names_it(self, tmp_path: Path) -> None:
        """As published: `tokenizer.json`, and a configuration of one entry."""
        train_tokenizer([ENGLISH], "bpe", 290).save(tmp_path)
        settings = tmp_path / "tokenizer_config.json"
        settings.write_text('{"model_max_length": 1024}', encoding="utf-8")
        actual = load_tokenizer(tmp_path)
        assert actual.special_id("eos_token") == actual.engine.token_to_id("<|endoftext|>")
        assert actual.special_id("cls_token") is None


class TestGoingOn:
    """Continued pre-training of a GPT-2 as transformers saves it, on texts of another domain."""

    DOMAIN = "The petitioner filed a motion; the motion was denied by the magistrate.\n"

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        """Trained a little on the novel, by transformers."""
        folder = tmp_path / "gpt2"
        folder.mkdir()
        tokenizer = train_tokenizer([ENGLISH], "bpe", 300)
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2
        )
        model = transformers.GPT2LMHeadModel(config)
        ids = torch.tensor([tokenizer.engine.encode(ENGLISH).ids[:64]])
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(20):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
        tokenizer.save(folder)
        return folder

    @pytest.mark.parametrize(
        ("new", "stored"),
        [([], False), ([], True), (["petitioner", "magistrate", "motion"], False)],
    )
    def test_lowers_the_loss(
        self, new: list[str], stored: bool, checkpoint: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "texts.txt"
        path.write_text("\n".join([self.DOMAIN * 3] * 30), encoding="utf-8")
        source = path
        if stored:
            source = tmp_path / "corpus"
            prepare([path], checkpoint, source, Settings(keep_duplicates=True), workers=1)
        recipe: dict[str, Any] = {
            "task": {"name": "causal_lm", "max_length": 64},
            "model": {"from": str(checkpoint), "new_tokens": new},
            "data": {"train": str(source), "validation": 0.1},
            "train": {"max_steps": 12, "batch_size": 4, "learning_rate": 3e-3, "device": "cpu"},
            "output": str(tmp_path / "run"),
        }
        before = pretune.evaluate(str(checkpoint), source, device="cpu").metrics
        result = pretune.train(recipe, quiet=True)
        after = pretune.evaluate(result.folder, source, device="cpu").metrics
        # Whatever the tokenizer: bits a byte are the same measure.
        assert after["bits_per_byte"] < 0.7 * before["bits_per_byte"]
        bundle = load(result.folder)
        size = load(checkpoint).tokenizer.vocab_size + len(new)
        assert bundle.tokenizer.vocab_size == size
        tokens = bundle.tokenizer.tokens(bundle.tokenizer.engine.encode(self.DOMAIN).ids)
        assert all(word in tokens for word in new)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(result.folder + "/best").eval()
        assert theirs.config.vocab_size == size

    def test_new_words_and_then_a_corpus(self, checkpoint: Path, tmp_path: Path) -> None:
        """The extended model, saved, is what a corpus is prepared with."""
        from pretune.bundle.bundle import grow_vocabulary, save
        from pretune.checkpoints.atomic_io import atomic_folder

        bundle = load(checkpoint)
        grow_vocabulary(bundle, ["petitioner"])
        with atomic_folder(tmp_path / "extended") as folder:
            save(bundle, folder)
        (tmp_path / "t.txt").write_text(self.DOMAIN * 40, encoding="utf-8")
        prepare([tmp_path / "t.txt"], tmp_path / "extended", tmp_path / "corpus", workers=1)
        recipe: dict[str, Any] = {
            "task": {"name": "causal_lm", "max_length": 64},
            "model": {"from": str(tmp_path / "extended")},
            "data": {"train": str(tmp_path / "corpus"), "validation": None},
            "train": {"max_steps": 8, "batch_size": 4, "learning_rate": 3e-3, "device": "cpu"},
            "output": str(tmp_path / "run"),
        }
        corpus = tmp_path / "corpus"
        before = pretune.evaluate(str(tmp_path / "extended"), corpus, device="cpu").metrics
        pretune.train(recipe, quiet=True)
        after = pretune.evaluate(recipe["output"], corpus, device="cpu").metrics
        assert after["loss"] < 0.8 * before["loss"]
