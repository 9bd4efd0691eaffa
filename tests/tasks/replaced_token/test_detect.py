"""ELECTRA's pre-training against transformers' two models, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import pretune
from pretune.bundle.bundle import Bundle, grow_vocabulary, load, outline, save
from pretune.data.batch import PackedBatch
from pretune.data.masking import NOT_MASKED
from pretune.data.records import Records
from pretune.errors import CheckpointError, RecipeError
from pretune.evaluation.examine import examine
from pretune.evaluation.explain import explain
from pretune.experiments.costs import estimate_memory
from pretune.models.heads.replaced import companion_of, shares_embeddings
from pretune.recipe.recipe import Recipe
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import featurize
from pretune.tasks.masked_lm.masked_sequences import MASKED
from pretune.tasks.replaced_token.detect import (
    DRAWS,
    DetectReplaced,
    JudgedToken,
    ReplacedPrediction,
    ReplacedTokenOptions,
)
from pretune.tokenizers.load import load_tokenizer
from pretune.training import run
from pretune.training.run import resume, train_recipe
from pretune.training.stop import Interrupted
from pretune.training.validation import evaluate_features
from tests.training.outcomes import StopAt, assert_alike, outcome

#: A discriminator of two layers with two heads, and embeddings of another width.
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "embedding_size": 8,
    "max_position_embeddings": 32,
}
#: 20 tokens each, of which 3 are masked.
WORDS = ("the", "good", "bad", "film", "un")
TEXTS = [{"text": " ".join(WORDS[(i * k + k // 3) % 5] for k in range(20))} for i in range(4)]


def made(tiny_folder: Path, size: str = "electra-small", **options: Any) -> Bundle:
    """A pair of models whose outputs are far from even."""
    torch.manual_seed(0)
    task = DetectReplaced(ReplacedTokenOptions(max_length=24, generator_size=0.5, **options))
    sizes = {name: SIZES[name] for name in SIZES if name != "embedding_size" or "electra" in size}
    bundle = load(size, task=task, tokenizer=load_tokenizer(tiny_folder), config=sizes)
    for parameter in bundle.model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return bundle


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pair."""
    place = tmp_path_factory.mktemp("electra")
    save(made(tiny_folder), place)
    return place


def drawn(bundle: Bundle, count: int = 4, epoch: int = 0) -> PackedBatch:
    features = featurize(bundle.task, Records(TEXTS[:count], "x"), bundle.tokenizer)
    batch = features.batch(np.arange(len(features)), sort=False)
    return bundle.task.augment(batch, 7, epoch)


def as_read(batch: PackedBatch, replacements: Tensor) -> Tensor:
    """The tokens that the discriminator reads."""
    tokens, masked = batch.tokens.clone(), batch.targets[MASKED] != NOT_MASKED
    tokens[masked] = replacements
    return tokens


class TestAgainstTransformers:
    @pytest.mark.parametrize("shared", [True, False])
    def test_losses_and_gradients(self, tiny_folder: Path, tmp_path: Path, shared: bool) -> None:
        bundle = made(tiny_folder, share_embeddings=shared)
        save(bundle, tmp_path)
        judge = transformers.ElectraForPreTraining.from_pretrained(tmp_path).eval()
        guesser = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "generator").eval()
        batch = drawn(bundle)
        count, length = batch.num_sequences, batch.layout.lengths[0]
        assert set(batch.layout.lengths) == {length}
        outputs = bundle.task.forward(bundle.model, batch)
        loss = bundle.task.loss(outputs, batch)
        (loss.sum / loss.count).backward()

        labels, shape = batch.targets[MASKED], (count, length)
        masked = labels != NOT_MASKED
        assert len({int(part.sum()) for part in masked.view(shape)}) == 1
        guessed = guesser(
            batch.tokens.view(shape), labels=labels.masked_fill(~masked, -100).view(shape)
        ).loss
        # The tokens were drawn from the generator's own distribution, by the numbers given.
        with torch.no_grad():
            probs = guesser(batch.tokens.view(shape)).logits.view(count * length, -1).softmax(-1)
        above = probs[masked].double().cumsum(-1) > batch.targets[DRAWS][masked, None].double()
        assert torch.equal(outputs.scores.drawn, above.int().argmax(-1))
        # A token counts as replaced only where it is another one than before.
        read = as_read(batch, outputs.scores.drawn)
        before = torch.where(masked, labels, batch.tokens)
        assert torch.equal(outputs.replaced, read != before)
        told = judge(read.view(shape), labels=(read != before).long().view(shape)).loss

        (guessed + 50 * told).backward()
        wanted = (guessed + 50 * told).item()
        assert loss.sum.item() / loss.count == pytest.approx(wanted, rel=1e-5)
        assert loss.parts["replaced_loss"].item() / loss.count == pytest.approx(told.item())
        own = bundle.backbone
        theirs = judge.electra.embeddings.word_embeddings.weight.grad
        if shared:
            theirs = theirs + guesser.electra.embeddings.word_embeddings.weight.grad
        # To the padding token, which may be drawn, transformers gives no gradient.
        mine = own.embeddings.tokens.weight.grad
        torch.testing.assert_close(mine[1:], theirs[1:], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            own.layers[1].feed_forward.up.weight.grad,
            judge.electra.encoder.layer[1].intermediate.dense.weight.grad,
            rtol=1e-4,
            atol=1e-5,
        )
        torch.testing.assert_close(
            companion_of(bundle.model).backbone.layers[0].feed_forward.up.weight.grad,
            guesser.electra.encoder.layer[0].intermediate.dense.weight.grad,
            rtol=1e-4,
            atol=1e-5,
        )

    def test_any_encoder_is_opened_as_a_classifier_of_tokens(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        bundle = made(tiny_folder, "bert-tiny")
        # As wide as the model, since they share a table, and half as deep.
        assert len(companion_of(bundle.model).backbone.layers) == 1
        save(bundle, tmp_path)
        theirs = transformers.BertForTokenClassification.from_pretrained(tmp_path).eval()
        transformers.BertForMaskedLM.from_pretrained(tmp_path / "generator")
        (encoded,) = bundle.tokenizer.encode(["the good film"])
        with torch.no_grad():
            actual = bundle.model(PackedBatch.of([encoded.ids])).logits
            expected = theirs(torch.tensor([encoded.ids])).logits[0, :, 0]
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class TestFolders:
    def test_both_models_come_back(self, tiny_folder: Path, folder: Path) -> None:
        wanted, actual = made(tiny_folder).model.state_dict(), load(folder)
        assert actual.model.state_dict().keys() == wanted.keys()
        for name, tensor in actual.model.state_dict().items():
            assert torch.equal(tensor, wanted[name]), name
        assert shares_embeddings(actual.model)
        # The file of the model has nothing of the generator.
        assert not any("generator" in name for name in load_file(folder / "model.safetensors"))

    def test_the_model_alone_is_fine_tuned(self, folder: Path) -> None:
        bundle = load(folder, task=Classify(ClassifyOptions(max_length=24), ["a", "b"]))
        assert companion_of(bundle.model) is None
        assert bundle.report is not None
        assert not any(name.startswith("backbone.") for name in bundle.report.missing)
        (loaded,) = (load(folder).backbone.layers[1].feed_forward.up.weight,)
        assert torch.equal(bundle.backbone.layers[1].feed_forward.up.weight, loaded)

    def test_without_its_generator_a_model_answers_only(self, folder: Path, tmp_path: Path) -> None:
        for path in folder.iterdir():
            if path.is_file() and path.name != "pretune.json":
                (tmp_path / path.name).write_bytes(path.read_bytes())
        bundle = load(tmp_path)
        assert isinstance(bundle.task, DetectReplaced)  # by the class in config.json
        pretune.predict(bundle, ["the good film"])
        with pytest.raises(CheckpointError, match="no generator"):
            bundle.task.forward(bundle.model, drawn(bundle))

    def test_a_published_generator_to_begin_with(self, folder: Path) -> None:
        source = str(folder / "generator")
        bundle = load(
            folder.parent / folder.name / "generator",
            task=DetectReplaced(
                ReplacedTokenOptions(max_length=24, generator=source, share_embeddings=False)
            ),
        )
        own = companion_of(bundle.model).state_dict()
        assert torch.equal(own["transform.weight"], load(source).model.transform.weight)

    def test_new_tokens_stay_shared(self, tiny_folder: Path) -> None:
        bundle = made(tiny_folder)
        rows = len(bundle.backbone.embeddings.tokens.weight)
        grow_vocabulary(bundle, ["pretune"])
        assert shares_embeddings(bundle.model)
        guesser = companion_of(bundle.model)
        assert len(guesser.output_table()) == len(guesser.output_bias()) == rows + 1
        assert guesser.backbone.config.vocab_size == rows + 1


class TestAnswers:
    def test_probabilities_stand_beside_the_tokens(self, folder: Path) -> None:
        bundle = load(folder)
        (answer,) = pretune.predict(bundle, ["the Good films"])
        (encoded,) = bundle.tokenizer.encode(["the Good films"])
        with torch.no_grad():
            scores = bundle.model(PackedBatch.of([encoded.ids])).logits.sigmoid()[1:-1].tolist()
        assert isinstance(answer, ReplacedPrediction)
        assert [t.text for t in answer.tokens] == ["the", "Good", "film", "s"]
        assert [(t.start, t.end) for t in answer.tokens] == [(0, 3), (4, 8), (9, 13), (13, 14)]
        assert [t.score for t in answer.tokens] == pytest.approx(scores, abs=1e-6)

    def test_shown_are_the_likely_ones_or_some(self) -> None:
        tokens = tuple(
            JudgedToken("abc"[i], i, i + 1, score) for i, score in enumerate((0.2, 0.9, 0.4))
        )
        answer = ReplacedPrediction(tokens)
        assert answer.to_dict() == {"replaced": [{"text": "b", "start": 1, "end": 2, "score": 0.9}]}
        assert answer.top(2).ranked() == [("b  [1:2]", 0.9), ("c  [2:3]", 0.4)]
        assert answer.top(None) == answer


class TestFigures:
    @torch.no_grad()
    def test_are_those_of_counting(self, folder: Path) -> None:
        bundle = load(folder)
        # As many look replaced as not: it misses some, and takes others for replaced.
        batch = drawn(bundle)
        bundle.model.replaced.bias.sub_(bundle.task.forward(bundle.model, batch).logits.median())
        features = featurize(bundle.task, Records(TEXTS, "x"), bundle.tokenizer)
        actual = evaluate_features(bundle.task, bundle.model, features, batch_tokens=30)
        # One sequence at a time; the draws are those of epoch -1.
        looks, truth, right, nats, losses, masks = [], [], 0, 0.0, 0.0, 0
        for i in range(len(features)):
            batch = bundle.task.augment(features.batch(np.array([i])), 0, -1)
            outputs = bundle.task.forward(bundle.model, batch)
            looks += (outputs.logits > 0).tolist()
            truth += outputs.replaced.tolist()
            right, nats = right + outputs.scores.right, nats + float(outputs.scores.cross_entropy)
            losses += float(bundle.task.loss(outputs, batch).sum)
            masks += outputs.scores.count
        hits = sum(a and b for a, b in zip(looks, truth, strict=True))
        assert 0 < hits < sum(truth)
        expected = {
            "loss": losses / masks,
            "accuracy": sum(a == b for a, b in zip(looks, truth, strict=True)) / len(looks),
            "precision": hits / sum(looks),
            "recall": hits / sum(truth),
            "f1": 2 * hits / (sum(looks) + sum(truth)),
            "generator_accuracy": right / masks,
            "generator_perplexity": np.exp(nats / masks),
        }
        for name, value in expected.items():
            assert actual.metrics[name] == pytest.approx(value, rel=1e-4), name
        assert actual.details["replaced"] == sum(truth)

    @torch.no_grad()
    def test_each_sequence_has_its_loss(self, folder: Path) -> None:
        bundle = load(folder)
        batch = drawn(bundle)
        outputs = bundle.task.forward(bundle.model, batch)
        each, whole = bundle.task.each_loss(outputs, batch), bundle.task.loss(outputs, batch)
        assert float(each.sums.sum()) == pytest.approx(float(whole.sum), rel=1e-5)
        assert int(each.counts.sum()) == whole.count

    def test_draws_follow_from_seed_epoch_and_place(self, folder: Path) -> None:
        bundle = load(folder)
        whole, part, later = drawn(bundle), drawn(bundle, 2), drawn(bundle, 2, epoch=1)
        count = part.num_tokens
        assert torch.equal(whole.targets[DRAWS][:count], part.targets[DRAWS])
        assert not torch.equal(later.targets[DRAWS], part.targets[DRAWS])


class TestRuns:
    @pytest.fixture
    def recipe(self, tiny_folder: Path, tmp_path: Path) -> Recipe:
        texts = tmp_path / "texts.jsonl"
        rows = [{"text": f"{'the good ' * (i % 4)}film is bad {i}"} for i in range(16)]
        texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Recipe.load(
            "electra-pretrain",
            {
                "task.max_length": 16,
                "task.generator_size": 0.5,
                "model.tokenizer": str(tiny_folder),
                "model.config": SIZES,
                "data.train": str(texts),
                "data.validation": 0.25,
                "train.max_steps": 6,
                "train.batch_size": 4,
                "train.eval_every": 2,
                "train.save_every": 1,
                "train.log_every": 1,
                "train.device": "cpu",
                "output": str(tmp_path / "run"),
            },
        )

    def test_resumed_as_never_stopped(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        straight = train_recipe(recipe.changed({"output": str(tmp_path / "straight")}), quiet=True)
        assert {"generator_loss", "replaced_loss", "f1"} <= straight.metrics.keys()
        monkeypatch.setattr(run, "StopRequest", lambda say: StopAt(3))
        with pytest.raises(Interrupted):
            train_recipe(recipe, quiet=True)
        monkeypatch.undo()
        resume(recipe.output, quiet=True)
        assert_alike(outcome(recipe.output), outcome(straight.folder))
        name = "last/generator/model.safetensors"
        assert (Path(recipe.output) / name).read_bytes() == (
            Path(straight.folder) / name
        ).read_bytes()

    def test_adapters_are_refused(self, recipe: Recipe, folder: Path) -> None:
        changes = {"model.from": str(folder), "model.config": {}, "model.tokenizer": None}
        with pytest.raises(RecipeError, match="trains two models"):
            train_recipe(recipe.changed({**changes, "train.lora": {"rank": 2}}), quiet=True)

    def test_a_decoder_cannot(self, tiny_folder: Path) -> None:
        task = DetectReplaced(ReplacedTokenOptions(max_length=24))
        with pytest.raises(CheckpointError, match="cannot be used for the task replaced_token"):
            load("gpt2-small", task=task, tokenizer=load_tokenizer(tiny_folder))

    def test_memory_counts_both_models(self, tiny_folder: Path) -> None:
        """Each parameter once, a shared table too."""
        bundle = made(tiny_folder)
        count = sum(p.numel() for p in bundle.model.parameters())
        assert estimate_memory(bundle.model, 2, 8).weights == 4 * count


def test_published_sizes_of_the_generator() -> None:
    """As google/electra-small-generator and google/electra-base-generator have them."""
    for size, share, hidden, heads, inner in (
        ("electra-small", 0.25, 64, 1, 256),
        ("electra-base", 1 / 3, 256, 4, 1024),
    ):
        task = DetectReplaced(ReplacedTokenOptions(generator_size=share))
        sizes = task.companion_sizes(outline(size).model)
        assert (sizes.hidden_size, sizes.num_attention_heads) == (hidden, heads)
        assert sizes.intermediate_size == inner
        assert sizes.embedding_size == {"electra-small": 128, "electra-base": 768}[size]


@pytest.mark.parametrize("share", [True, False])
def test_a_loss_is_explained_by_both_readings_of_a_token(tiny_folder: Path, share: bool) -> None:
    """The generator and its judge look up all tokens, in one table or in two."""
    examined = examine(
        made(tiny_folder, share_embeddings=share), Records(TEXTS[:1], "x", (1,)), device="cpu"
    )
    explained = explain(examined, 0)
    assert len(explained.attributions) == len(explained.tokens) == 22
    # The loss of an example is the mean over its masks, of which there are 3.
    assert explained.value == pytest.approx(3 * float(examined.losses[0]), rel=1e-4)
    assert any(explained.attributions)
