"""Pre-training by masks and pairs: loss, metrics, and runs that are what one would think."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor

import pretune
from pretune.bundle.bundle import Bundle, load, save
from pretune.data.batch import FeatureSet, Layout, PackedBatch, Selection
from pretune.data.batch_order import batches_by_length
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError
from pretune.models.bert import BertPreTraining
from pretune.recipe.recipe import Recipe, builtin_recipes
from pretune.tasks.features import featurize
from pretune.tasks.masked_lm.mask_lm import MaskLm, MaskLmOptions
from pretune.tasks.masked_lm.masked_sequences import MASKED, PAIR_LABEL, WORDS
from pretune.training.data import read_data
from pretune.training.run import resume, train_recipe
from pretune.training.validation import evaluate_features
from tests.training.groups import STEADY, Together, assert_close, result_of, weights
from tests.training.outcomes import assert_alike, outcome, stopped_after

Make = Callable[..., Recipe]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """30 documents of a few sentences each, of uneven lengths."""
    chance = random.Random(0)
    path = tmp_path / "documents.jsonl"
    kinds = [["the", "good", "film", "able"], ["a", "bad", "unable", "x1"]]
    with path.open("w", encoding="utf-8") as file:
        for number in range(30):
            sentences = [
                " ".join(chance.choices(kinds[number % 2], k=chance.randint(1, 9))).capitalize()
                + "."
                for _ in range(chance.randint(2, 9))
            ]
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


@pytest.fixture
def make(tiny_folder: Path, documents: Path, tmp_path: Path) -> Make:
    def recipe(task: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        made = Recipe.of(
            {
                "task": {"name": "mask_lm", "max_length": 24, **(task or {})},
                "model": {"from": str(tiny_folder)},
                "data": {"train": str(documents), "validation": 0.2},
                "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"},
                "output": str(tmp_path / "run"),
            }
        )
        return made.changed({key.replace("__", "."): value for key, value in changes.items()})

    return recipe


def loaded(tiny_folder: Path, **options: Any) -> Bundle:
    torch.manual_seed(0)
    bundle = load(tiny_folder, task=MaskLm(MaskLmOptions(max_length=24, **options)))
    for parameter in bundle.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    bundle.model.eval()
    return bundle


def featured(bundle: Bundle, documents: Path) -> FeatureSet:
    records = read(documents)
    return featurize(bundle.task, records, bundle.tokenizer)


class TestFeatures:
    def features(self, tiny_folder: Path, texts: list[str], **options: Any) -> FeatureSet:
        bundle = loaded(tiny_folder, **options)
        return featurize(bundle.task, Records([{"text": t} for t in texts], "x"), bundle.tokenizer)

    def test_documents_are_cut_into_blocks(self, tiny_folder: Path) -> None:
        """Together the blocks are the document; none holds two documents; all are alike long."""
        texts = ["the good film " * 17, "bad", "", "un " * 23]
        actual = self.features(tiny_folder, texts)
        assert actual.records.tolist() == [0, 0, 0, 1, 3, 3]
        assert actual.lengths.tolist() == [19, 19, 19, 3, 13, 14]
        assert actual.truncated == 0
        bundle = loaded(tiny_folder)
        cls, sep = (bundle.tokenizer.special_id(n) for n in ("cls_token", "sep_token"))
        for record, text in enumerate(texts):
            mine = [
                actual.tokens[actual.starts[i] : actual.starts[i + 1]]
                for i in range(len(actual))
                if actual.records[i] == record
            ]
            assert all(ids[0] == cls and ids[-1] == sep for ids in mine)
            joined = [int(token) for ids in mine for token in ids[1:-1]]
            assert joined == bundle.tokenizer.engine.encode(text, add_special_tokens=False).ids

    def test_a_pair_is_laid_out_as_the_tokenizer_does(
        self, tiny_folder: Path, documents: Path
    ) -> None:
        bundle = loaded(tiny_folder, next="sop", mask="words")
        actual = featured(bundle, documents)
        assert actual.segments is not None
        cls, sep = (bundle.tokenizer.special_id(n) for n in ("cls_token", "sep_token"))
        for i in range(len(actual)):
            part = slice(actual.starts[i], actual.starts[i + 1])
            ids, segments = actual.tokens[part], actual.segments[part]
            ends = np.flatnonzero(ids == sep)
            assert ids[0] == cls
            assert len(ends) == 2
            assert ends[1] == len(ids) - 1
            assert segments.tolist() == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
            words, tokens = actual.targets[WORDS][part], bundle.tokenizer.tokens(ids.tolist())
            for k in range(1, len(ids)):
                if tokens[k].startswith("##"):  # after a special token: the rest of a cut word
                    assert words[k - 1] in (words[k], -1)
                elif words[k] != -1:
                    assert words[k] != words[k - 1]
        assert actual.lengths.max() <= 24
        assert set(actual.targets[PAIR_LABEL].tolist()) == {0, 1}

    def test_what_cannot_be_guessed_is_left_out(self, tiny_folder: Path) -> None:
        assert len(self.features(tiny_folder, ["☃ ☃", "☃", "  "])) == 0

    def test_pairs_need_sentences(self, make: Make, tmp_path: Path) -> None:
        path = tmp_path / "lines.jsonl"
        path.write_text('{"text": "one line"}\n' * 9, encoding="utf-8")
        with pytest.raises(DataError, match=r"no record has two sentences(.|\n)*task.next=none"):
            train_recipe(make({"next": "nsp"}, data__train=str(path)), quiet=True)
        assert not Path(make().output).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"as_mask": 0.8, "as_random": 0.3},
        {"words": "jieba"},
        {"next": "nsp", "max_length": 4},
        {"mask_share": 0.0},
        {"span_p": 1.0},
        {"dupe": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MaskLmOptions(**wrong)


def their_loss(
    theirs: transformers.BertForPreTraining, batch: PackedBatch
) -> tuple[list[Tensor], list[Tensor]]:
    """Of each masked token, and of each sequence, one sequence at a time."""
    tokens, follows = [], []
    for i, (start, length) in enumerate(
        zip(batch.layout.starts, batch.layout.lengths, strict=True)
    ):
        part = slice(start, start + length)
        actual = theirs(batch.tokens[part][None], token_type_ids=batch.segments[part][None])
        labels = batch.targets[MASKED][part]
        lost = -actual.prediction_logits[0].log_softmax(-1)
        tokens += [lost[k, label] for k, label in enumerate(labels) if label != -1]
        follows.append(
            -actual.seq_relationship_logits[0].log_softmax(-1)[batch.targets[PAIR_LABEL][i]]
        )
    return tokens, follows


class TestLoss:
    @pytest.fixture
    def bundle(self, tiny_folder: Path) -> Bundle:
        return loaded(tiny_folder, next="nsp")

    @pytest.fixture
    def theirs(self, bundle: Bundle, tmp_path: Path) -> transformers.BertForPreTraining:
        (tmp_path / "saved").mkdir()
        save(bundle, tmp_path / "saved")
        model, info = transformers.BertForPreTraining.from_pretrained(
            tmp_path / "saved", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        return model.eval()

    def drawn(self, bundle: Bundle, features: FeatureSet, which: list[int]) -> PackedBatch:
        return bundle.task.augment(features.batch(np.array(which)), 0, 0)

    @torch.no_grad()
    def test_opens_in_transformers_with_equal_logits(
        self, bundle: Bundle, theirs: transformers.BertForPreTraining, documents: Path
    ) -> None:
        batch = self.drawn(bundle, featured(bundle, documents), [0, 3, 5])
        assert isinstance(bundle.model, BertPreTraining)
        whole = bundle.model(batch, both=True)
        scored = bundle.task.forward(bundle.model, batch)
        masks = batch.targets[MASKED] != -1
        counts = [int(part.sum()) for part in masks.split(batch.layout.lengths)]
        select = Selection(masks.nonzero()[:, 0], Layout.of(counts))
        some = bundle.model(batch, both=True, select=select)
        parts = batch.layout.lengths
        tokens, segments = batch.tokens.split(parts), batch.segments.split(parts)
        actual = [
            theirs(t[None], token_type_ids=s[None]) for t, s in zip(tokens, segments, strict=True)
        ]
        logits = torch.cat([one.prediction_logits[0] for one in actual])
        follows = torch.cat([one.seq_relationship_logits for one in actual])
        torch.testing.assert_close(whole.predictions, logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole.seq_relationship_logits, follows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(some.predictions, logits[masks], atol=1e-5, rtol=1e-5)
        lost = torch.nn.functional.cross_entropy(
            logits[masks], batch.targets[MASKED][masks], reduction="none"
        )
        torch.testing.assert_close(scored.predictions.nats, lost, atol=1e-4, rtol=1e-5)
        for one in (some, scored):
            torch.testing.assert_close(one.seq_relationship_logits, follows, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_is_what_it_says(
        self, bundle: Bundle, theirs: transformers.BertForPreTraining, documents: Path
    ) -> None:
        """A pair counts once for each of its masked tokens."""
        batch = self.drawn(bundle, featured(bundle, documents), [0, 1, 2, 3, 4])
        actual = bundle.task.loss(bundle.task.forward(bundle.model, batch), batch)
        tokens, follows = their_loss(theirs, batch)
        masks = [int((p != -1).sum()) for p in batch.targets[MASKED].split(batch.layout.lengths)]
        assert len(set(masks)) > 1
        second = sum(n * float(one) for n, one in zip(masks, follows, strict=True))
        assert actual.count == len(tokens) == sum(masks)
        assert float(actual.sum) == pytest.approx(float(sum(tokens)) + second, rel=1e-5)
        assert float(actual.parts["mask_loss"]) == pytest.approx(float(sum(tokens)), rel=1e-5)
        assert float(actual.parts["nsp_loss"]) == pytest.approx(second, rel=1e-5)

    @torch.no_grad()
    def test_is_berts_where_all_have_equally_many_masks(
        self, bundle: Bundle, theirs: transformers.BertForPreTraining, documents: Path
    ) -> None:
        features = featured(bundle, documents)
        of_23 = np.flatnonzero(features.lengths == 24)[:6].tolist()
        batch = self.drawn(bundle, features, of_23)
        masked = batch.targets[MASKED].split(batch.layout.lengths)
        same = [i for i, part in enumerate(masked) if int((part != -1).sum()) == 3]
        assert len(same) >= 2
        batch = self.drawn(bundle, features, [int(batch.index[i]) for i in same])
        labels = batch.targets[MASKED].view(len(same), 24)
        expected = theirs(
            batch.tokens.view(len(same), 24),
            token_type_ids=batch.segments.view(len(same), 24),
            labels=labels.masked_fill(labels == -1, -100),
            next_sentence_label=batch.targets[PAIR_LABEL],
        ).loss
        actual = bundle.task.loss(bundle.task.forward(bundle.model, batch), batch)
        assert float(actual.sum) / actual.count == pytest.approx(float(expected), rel=1e-5)

    @torch.no_grad()
    def test_metrics(
        self, bundle: Bundle, theirs: transformers.BertForPreTraining, documents: Path
    ) -> None:
        features = featured(bundle, documents)
        actual = evaluate_features(bundle.task, bundle.model, features, batch_tokens=100)
        lost, right, tokens, follows, pairs = 0.0, 0, 0, 0, 0
        for which in batches_by_length(features.lengths, 64):
            batch = bundle.task.augment(features.batch(which), 0, -1)
            each, _ = their_loss(theirs, batch)
            lost, tokens = lost + float(sum(each)), tokens + len(each)
            for i, part in enumerate(batch.tokens.split(batch.layout.lengths)):
                start = batch.layout.starts[i]
                where = slice(start, start + len(part))
                out = theirs(part[None], token_type_ids=batch.segments[where][None])
                labels = batch.targets[MASKED][where]
                right += int((out.prediction_logits[0].argmax(-1) == labels).sum())
                follows += int(
                    out.seq_relationship_logits.argmax(-1) == batch.targets[PAIR_LABEL][i]
                )
                pairs += 1
        assert actual.details == {"tokens": tokens, "pairs": pairs}
        assert pairs == len(features)
        assert actual.metrics["perplexity"] == pytest.approx(math.exp(lost / tokens), rel=1e-4)
        assert actual.metrics["mask_loss"] == pytest.approx(lost / tokens, rel=1e-4)
        assert actual.metrics["accuracy"] == pytest.approx(right / tokens)
        assert actual.metrics["nsp_accuracy"] == pytest.approx(follows / pairs)

    @torch.no_grad()
    def test_merged_metrics_are_those_of_all(self, bundle: Bundle, documents: Path) -> None:
        features, task = featured(bundle, documents), bundle.task
        whole, one, two = task.metrics(), task.metrics(), task.metrics()
        for part, which in ((one, [0, 1]), (two, [2, 3, 4]), (two, [5])):
            batch = self.drawn(bundle, features, which)
            for metrics in (whole, part):
                metrics.update(task.forward(bundle.model, batch), batch)
        one.merge(two)
        assert one.result() == pytest.approx(whole.result())
        assert one.details() == whole.details()


#: Of the tests of whole runs: masks alone, whole words with pairs, spans with swapped ones.
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "words, nsp": {"mask": "words", "next": "nsp", "dupe": 2},
    "spans, sop": {"mask": "spans", "next": "sop"},
}


class TestRuns:
    @pytest.mark.parametrize("kind", KINDS)
    def test_in_parts_as_at_once(self, kind: str, make: Make, tmp_path: Path) -> None:
        """A batch of 32 as 4 parts of 8, whose masks are not equally many."""
        once = make(KINDS[kind], **STEADY, train__batch_size=32, output=str(tmp_path / "one"))
        train_recipe(once, quiet=True)
        parts = once.changed({"train.accumulate": 4, "output": str(tmp_path / "parts")})
        train_recipe(parts, quiet=True)
        assert_close(parts.output, weights(once.output))

    @pytest.mark.parametrize("kind", KINDS)
    def test_resumed_as_never_stopped(self, kind: str, make: Make, tmp_path: Path) -> None:
        changes = {"model__dropout": 0.2, "train__workers": 1, "train__log_every": 2}
        whole = make(KINDS[kind], **changes, output=str(tmp_path / "whole"))
        train_recipe(whole, quiet=True)
        cut = whole.changed({"output": str(tmp_path / "cut")})
        with stopped_after(5):
            train_recipe(cut, quiet=True)
        resume(cut.output, quiet=True)
        assert_alike(outcome(cut.output), outcome(whole.output))

    @pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
    @pytest.mark.parametrize("kind", ["tokens", pytest.param("words, nsp", marks=pytest.mark.slow)])
    def test_in_two_processes_as_in_one(
        self, kind: str, parallel: str, make: Make, tmp_path: Path, together: Together
    ) -> None:
        changes = {**STEADY, "train__batch_size": 7, "train__parallel": parallel}
        one = make(KINDS[kind], **changes, output=str(tmp_path / "one"))
        result = train_recipe(one, quiet=True)
        two = one.changed({"output": str(tmp_path / "two")})
        together.train(2, two)
        assert_close(two.output, weights(one.output))
        actual = result_of(two.output)
        assert actual["details"] == result.details
        assert actual["metrics"] == pytest.approx(result.metrics, rel=1e-4)

    def test_each_epoch_has_masks_of_its_own(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[tuple[int, int], set[tuple[int, ...]]] = {}
        original = MaskLm.augment

        def watched(self: MaskLm, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
            drawn = original(self, batch, seed, epoch)
            for i, part in enumerate(drawn.targets[MASKED].split(drawn.layout.lengths)):
                places = tuple((part != -1).nonzero()[:, 0].tolist())
                seen.setdefault((epoch, int(batch.index[i])), set()).add(places)
            return drawn

        monkeypatch.setattr(MaskLm, "augment", watched)
        train_recipe(make(), quiet=True)
        held_out = [places for (epoch, _), places in seen.items() if epoch == -1]
        assert held_out
        assert all(len(places) == 1 for places in held_out)  # both evaluations drew the same
        features = {feature for epoch, feature in seen if epoch == 0}
        differing = [f for f in features if seen[0, f] != seen[1, f]]
        assert len(differing) > 0.8 * len(features)


class TestModels:
    @pytest.mark.slow
    def test_the_loss_falls_on_a_loaded_model_without_a_head(
        self, minilm: Path, make: Make, tmp_path: Path
    ) -> None:
        """A fresh head on a real backbone."""
        recipe = make(
            model__from=str(minilm),
            data__validation=None,
            train__max_steps=12,
            train__learning_rate=3e-4,
            train__log_every=1,
            train__warmup=0,
        )
        train_recipe(recipe, quiet=True)
        lines = (Path(recipe.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses = [e["train/loss"] for e in map(json.loads, lines) if "train/loss" in e]
        assert losses[0] > 8  # a fresh head knows as good as nothing of 30,522 tokens
        assert losses[-1] < losses[0] - 2
        assert pretune.predict(recipe.output, ["the [MASK] film."])

    def test_a_run_with_pairs_goes_on_is_evaluated_and_fills_gaps(
        self, make: Make, tmp_path: Path, documents: Path
    ) -> None:
        recipe = make({"next": "nsp"}, train__max_steps=3)
        result = train_recipe(recipe, quiet=True)
        assert {"loss", "mask_loss", "nsp_loss", "perplexity", "accuracy", "nsp_accuracy"} == set(
            result.metrics
        )
        bundle = load(recipe.output)
        assert bundle.task.head == "pretraining"
        assert not bundle.report.missing
        assert not bundle.report.unexpected
        assert len(pretune.predict(bundle, ["the [MASK] film"])[0].gaps) == 1
        assert "nsp_accuracy" in pretune.evaluate(bundle, documents).metrics
        alone = load(recipe.output, task=MaskLm(MaskLmOptions(max_length=24)))
        assert not alone.report.missing
        inner = {k for k in bundle.model.state_dict() if not k.startswith("relationship")}
        for name in inner & set(alone.model.state_dict()):
            assert torch.equal(alone.model.state_dict()[name], bundle.model.state_dict()[name])

    def test_a_model_of_masks_alone_gets_the_other_head_anew(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        torch.manual_seed(0)
        config = transformers.BertConfig.from_pretrained(tiny_folder)
        theirs = transformers.BertForMaskedLM(config)
        theirs.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((tiny_folder / "vocab.txt").read_bytes())
        bundle = load(tmp_path, task=MaskLm(MaskLmOptions(max_length=24, next="sop")))
        assert set(bundle.report.missing) == {
            *("relationship.weight", "relationship.bias"),
            *("backbone.pooler.weight", "backbone.pooler.bias"),
        }
        kept = bundle.model.get_parameter("transform.weight")
        assert torch.equal(kept, theirs.cls.predictions.transform.dense.weight)

    def test_a_published_pair_model_keeps_both_heads(
        self, tiny_folder: Path, tmp_path: Path, documents: Path
    ) -> None:
        config = transformers.BertConfig.from_pretrained(tiny_folder)
        transformers.BertForPreTraining(config).save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((tiny_folder / "vocab.txt").read_bytes())
        bundle = load(tmp_path)
        assert bundle.task.options.next == "nsp"
        assert not bundle.report.missing
        actual = pretune.evaluate(bundle, Records([{"text": "the good film"}], "x"))
        assert set(actual.metrics) == {"loss", "pseudo_perplexity", "accuracy"}
        assert actual.details == {"tokens": 3}

    def test_only_bert_has_pairs(self, make: Make) -> None:
        with pytest.raises(CheckpointError, match="distilbert"):
            train_recipe(make({"next": "nsp"}, model__from="distilbert-base"), quiet=True)


def test_validation_by_each_token_in_turn(make: Make) -> None:
    """Trained on drawn masks, validated on all: as many tokens as the held-out documents have."""
    result = train_recipe(make({"evaluate": "each"}, train__max_steps=2), quiet=True)
    bundle = load(make().output)
    _, held_out = read_data(make())
    assert held_out is not None
    texts = [row["text"] for row in held_out.rows]
    counts = [len(one.ids) - 2 for one in bundle.tokenizer.encode(texts, max_length=24)]
    assert result.details == {"tokens": sum(counts)}
    assert set(result.metrics) == {"loss", "pseudo_perplexity", "accuracy"}


class TestRecipe:
    def test_is_built_in_and_trains(
        self, tiny_folder: Path, documents: Path, tmp_path: Path
    ) -> None:
        assert "bert-pretrain" in builtin_recipes()
        small = {
            "data.train": str(documents),
            "data.validation": 0.2,
            "model.from": str(tiny_folder),
            "task.max_length": 24,
            "train.max_steps": 2,
            "train.batch_size": 4,
            "train.device": "cpu",
            "output": str(tmp_path / "run"),
        }
        result = pretune.train("bert-pretrain", small, quiet=True)
        assert "nsp_accuracy" in result.metrics

    def test_has_the_settings_of_the_paper(self) -> None:
        """Devlin et al. 2019, appendix A.2; the size is of Turc et al. 2019, table 1."""
        recipe = Recipe.load("bert-pretrain")
        train = recipe.train
        assert (train.learning_rate, train.beta1, train.beta2) == (1e-4, 0.9, 0.999)
        assert (train.weight_decay, train.batch_size, train.schedule) == (0.01, 256, "linear")
        config = load(recipe.model.source, bare=True).backbone.config
        assert (config.num_hidden_layers, config.size("hidden_size")) == (4, 512)
        assert config.hidden_dropout_prob == 0.1
