"""Truncated back-propagation through time, against a plain loop over torch's own layers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from torch import nn

from pretune.bundle.bundle import Bundle
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.data.batch_order import Cursor
from pretune.data.records import Records
from pretune.errors import CheckpointError, RunError
from pretune.inference.predict import Predictor
from pretune.inference.strategies import TruncatedBptt
from pretune.models.classics.common import ClassicLM
from pretune.models.classics.nnlm import NnlmConfig, NnlmModel
from pretune.models.classics.rnn import RnnConfig, RnnModel
from pretune.recipe.recipe import Recipe
from pretune.recipe.schema import TrainSection
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions, LmPrediction
from pretune.tasks.features import featurize
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.training.logging import Reporter
from pretune.training.loop import Trainer
from pretune.training.run import resume, train_recipe
from pretune.training.validation import evaluate_features
from tests.training.outcomes import assert_alike, outcome, stopped_after

LETTERS = "abcdefgh <"
RECURRENT = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def letters() -> Tokenizer:
    """A token a character."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
    engine = RustTokenizer(models.WordLevel(vocabulary, unk_token="a"))  # noqa: S106
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    engine.decoder = decoders.Fuse()
    return Tokenizer(engine, {"eos_token": "<"})


def some_texts(*lengths: int) -> list[str]:
    chance = random.Random(3)
    return ["".join(chance.choices(LETTERS[:-1], k=length)) for length in lengths]


def features_of(task: CausalLm, texts: list[str]) -> FeatureSet:
    rows = [{"text": text} for text in texts]
    return featurize(task, Records(rows=rows, origin="x", columns=("text",)), letters())


def language_model(cell: str = "lstm", **sizes: int) -> ClassicLM:
    torch.manual_seed(0)
    default = {"embedding_size": 5, "hidden_size": 6, "num_hidden_layers": 2}
    config = RnnConfig(
        vocab_size=len(LETTERS), cell=cell, initializer_range=0.5, **{**default, **sizes}
    )
    return ClassicLM(RnnModel(config))


class Losses:
    """Keeps the loss of each update."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        self.found.append(figures["train/loss"])

    def rewind(self, step: int) -> None:
        del self.found[step:]

    def close(self) -> None:
        pass


def trainer_of(
    task: CausalLm, model: nn.Module, features: FeatureSet, losses: Losses, **options: Any
) -> Trainer:
    usual = {
        "epochs": 2,
        "batch_size": 3,
        "learning_rate": 0.01,
        "schedule": "constant",
        "warmup": 0,
        "weight_decay": 0.0,
        "clip": None,
        "eps": 1e-3,
        "log_every": 1,
    }
    section = TrainSection.model_validate({**usual, **options})
    return Trainer(task, model, features, options=section, reporter=Reporter((losses,), quiet=True))


class Plain(nn.Module):
    """Embeddings, torch's own layers and an output layer, with the weights of ours."""

    def __init__(self, model: ClassicLM) -> None:
        super().__init__()
        config = model.backbone.config
        self.table = nn.Embedding(config.vocab_size, config.embedding_size)
        sizes = (config.embedding_size, config.hidden_size, config.num_hidden_layers)
        self.layers = RECURRENT[config.cell](*sizes, batch_first=True)
        self.output = nn.Linear(config.hidden_size, config.vocab_size)
        for theirs, ours in self.pairs(model):
            theirs.data.copy_(ours.data)

    def pairs(self, model: ClassicLM) -> list[tuple[nn.Parameter, nn.Parameter]]:
        found = [
            (self.table.weight, model.backbone.embeddings.tokens.weight),
            (self.output.weight, model.output.weight),
            (self.output.bias, model.bias),
        ]
        for i, layer in enumerate(model.backbone.layers):
            for name, part in (("ih", layer.input), ("hh", layer.recurrent)):
                found.append((self.layers.get_parameter(f"weight_{name}_l{i}"), part.weight))
                found.append((self.layers.get_parameter(f"bias_{name}_l{i}"), part.bias))
        return found

    def forward(self, tokens: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        hidden, state = self.layers(self.table(tokens[None]), state)
        return self.output(hidden[0]), state


def detached(state: Any) -> Any:
    return tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()


def plainly(trainer: Trainer, plain: Plain, features: FeatureSet, count: int) -> list[float]:
    """Stream by stream, block by block; nothing but detach() stands between two blocks."""
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, eps=1e-3, weight_decay=0.0)
    states: dict[int, Any] = {}
    at, losses = Cursor(), []
    while at.epoch < 2:
        if at.offset == 0:
            states = {}
        which, at = trainer.order.take(at, 3)
        total, tokens = torch.zeros(()), 0
        for stream, feature in enumerate(which):
            start, stop = features.starts[feature : feature + 2]
            new = feature == 0 or features.records[feature] != features.records[feature - 1]
            ids = torch.from_numpy(features.tokens[start:stop].astype(np.int64))
            labels = torch.from_numpy(features.targets["next"][start:stop])
            logits, state = plain(ids, None if new else states.get(stream))
            states[stream] = detached(state)
            total, tokens = (
                total + F.cross_entropy(logits, labels, reduction="sum"),
                tokens + len(labels),
            )
        optimizer.zero_grad()
        (total / tokens).backward()
        optimizer.step()
        losses.append(float(total.detach()) / tokens)
    assert len(losses) == count
    return losses


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("lengths", [(200,), (60, 9, 31, 80, 5)], ids=["one text", "texts"])
@pytest.mark.parametrize("cell", list(RECURRENT))
def test_training_is_the_plain_loop(cell: str, lengths: tuple[int, ...], accumulate: int) -> None:
    task = CausalLm(CausalLmOptions(max_length=7))
    features, model, losses = (
        features_of(task, some_texts(*lengths)),
        language_model(cell),
        Losses(),
    )
    plain = Plain(model)
    trainer = trainer_of(task, model, features, losses, accumulate=accumulate)
    trainer.fit()
    expected = plainly(trainer, plain, features, trainer.total)
    np.testing.assert_allclose(losses.found, expected, rtol=1e-4)
    for theirs, ours in plain.pairs(model):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)


def test_gradients_of_one_update_are_those_of_the_plain_loop() -> None:
    task = CausalLm(CausalLmOptions(max_length=7))
    features, model = features_of(task, some_texts(100)), language_model("gru")
    plain = Plain(model)
    trainer = trainer_of(task, model, features, Losses(), learning_rate=1e-30)
    batches = trainer._batches()
    trainer._update(next(batches))
    trainer.gradients(next(batches))
    first, second = (trainer.order.take(Cursor(0, offset), 3)[0] for offset in (0, 3))
    for one, two in zip(first, second, strict=True):
        ids = [torch.from_numpy(features.batch(np.array([i])).tokens.numpy()) for i in (one, two)]
        _, state = plain(ids[0], None)
        logits, _ = plain(ids[1], state.detach())
        labels = features.batch(np.array([two])).targets["next"]
        F.cross_entropy(logits, labels, reduction="sum").backward()
    for theirs, ours in plain.pairs(model):
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad, rtol=1e-4, atol=1e-5)


def test_without_it_each_block_begins_with_nothing() -> None:
    found = []
    for carry in (None, False):
        task = CausalLm(CausalLmOptions(max_length=7, carry_state=carry))
        features, losses = features_of(task, some_texts(100)), Losses()
        model = language_model()
        trainer_of(task, model, features, losses).fit()
        found.append(losses.found)
    assert found[0] != found[1]


def test_what_lies_before_the_block_helps() -> None:
    """Blocks of 4 letters; the first of 8 letters says what the last ones are."""
    chance = random.Random(1)
    text = "".join(chance.choice(["aefghhhh", "befghggg"]) for _ in range(100))
    options = {"epochs": 8, "batch_size": 4, "learning_rate": 0.02, "clip": 1.0, "eps": 1e-8}
    figures = {}
    for carry in (True, False):
        task = CausalLm(CausalLmOptions(max_length=4, carry_state=carry))
        features = features_of(task, [text])
        model = language_model("gru", num_hidden_layers=1, hidden_size=16)
        trainer_of(task, model, features, Losses(), schedule="linear", **options).fit()
        figures[carry] = evaluate_features(task, model, features).metrics["loss"]
    assert figures[True] < 0.8 * figures[False], figures


@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_evaluation_reads_each_text_as_a_whole(batch_tokens: int) -> None:
    """However it is cut into blocks, and however much is read at a time."""
    texts = some_texts(50, 3, 24, 41)
    model = language_model().eval()
    task = CausalLm(CausalLmOptions(max_length=6))
    found = evaluate_features(task, model, features_of(task, texts), batch_tokens=batch_tokens)
    plain, nats, tokens = Plain(model), 0.0, 0
    for text in texts:
        ids = torch.tensor([LETTERS.index(letter) for letter in f"<{text}<"])
        logits, _ = plain(ids[:-1], None)
        nats += float(F.cross_entropy(logits, ids[1:], reduction="sum").detach())
        tokens += len(text) + 1
    assert found.details["tokens"] == tokens
    assert found.metrics["loss"] == pytest.approx(nats / tokens, rel=1e-5)


@pytest.mark.parametrize("boundaries", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_answers_read_each_text_as_a_whole(batch_tokens: int, boundaries: bool) -> None:
    """Each by itself, however the model was trained: no state goes on from text to text."""
    texts = some_texts(50, 3, 24, 41)
    model = language_model().eval()
    task = CausalLm(CausalLmOptions(max_length=6, boundaries=boundaries))
    family: Any = None
    bundle = Bundle(model, letters(), family, task)
    predictor = Predictor(bundle, device="cpu", batch_tokens=batch_tokens)
    plain = Plain(model)
    found = predictor.predict(predictor.records(texts))
    for text, answer in zip(texts, found, strict=True):
        assert isinstance(answer, LmPrediction)
        ids = torch.tensor([LETTERS.index(letter) for letter in f"<{text}<"])
        logits, _ = plain(ids[:-1], None)
        nats = float(F.cross_entropy(logits, ids[1:], reduction="sum").detach())
        assert answer.tokens == len(text) + 1
        assert answer.log_probability == pytest.approx(-nats, rel=1e-5)


def test_the_window_of_an_nnlm_reaches_into_the_block_before() -> None:
    torch.manual_seed(0)
    config = NnlmConfig(vocab_size=len(LETTERS), order=4, embedding_size=3, hidden_size=5)
    model = ClassicLM(NnlmModel(config)).eval()
    (text,) = some_texts(40)
    short, long = (CausalLm(CausalLmOptions(max_length=size)) for size in (3, 64))
    one, other = (
        evaluate_features(task, model, features_of(task, [text])).metrics["loss"]
        for task in (short, long)
    )
    assert one == pytest.approx(other, rel=1e-5)


Make = Callable[..., Recipe]


@pytest.fixture
def text_recipe(tmp_path: Path) -> Make:
    tokenizer = tmp_path / "letters"
    tokenizer.mkdir()
    letters().save(tokenizer)
    for name, lengths in (("train", (260, 30)), ("validation", (60,))):
        lines = [f'{{"text": "{text}"}}' for text in some_texts(*lengths)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def make(**changes: Any) -> Recipe:
        recipe = Recipe.of(
            {
                "task": {"name": "causal_lm", "max_length": 7},
                "model": {
                    "from": "lstm-small",
                    "tokenizer": str(tokenizer),
                    "dropout": 0.2,
                    "config": {"embedding_size": 5, "hidden_size": 6},
                },
                "data": {
                    "train": str(tmp_path / "train.jsonl"),
                    "validation": str(tmp_path / "validation.jsonl"),
                },
                "train": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu"},
                "output": str(tmp_path / "run"),
            }
        )
        return recipe.changed({key.replace("__", "."): value for key, value in changes.items()})

    return make


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"train__accumulate": 3},
    "token budget": {"train__batch_tokens": 30, "train__batch_size": None},
    "window": {"model__from": "nnlm", "model__dropout": None},
    "average": {"train__ema": 0.9, "train__background_save": True},
    "guarded": {"train__guard": "rollback", "task__boundaries": False},
}


def stop(recipe: Recipe, updates: int) -> None:
    with stopped_after(updates):
        train_recipe(recipe, quiet=True)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_goes_on_with_its_states(
    case: str, text_recipe: Make, tmp_path: Path
) -> None:
    """Stopped inside an epoch, and where one ends."""
    whole = text_recipe(output=str(tmp_path / "whole"), **CASES[case])
    train_recipe(whole, quiet=True)
    expected = outcome(whole.output)
    for updates in (4, 11):
        recipe = text_recipe(output=str(tmp_path / f"at-{updates}"), **CASES[case])
        stop(recipe, updates)
        resume(recipe.output, quiet=True)
        assert_alike(outcome(recipe.output), expected)


def test_without_the_states_a_resumed_run_would_differ(
    text_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the test above can fail."""
    whole = text_recipe(output=str(tmp_path / "whole"))
    train_recipe(whole, quiet=True)
    recipe = text_recipe(output=str(tmp_path / "parts"))
    stop(recipe, 4)
    monkeypatch.setattr(TruncatedBptt, "restore", lambda self, tensors, device: None)
    resume(recipe.output, quiet=True)
    assert outcome(recipe.output)["weights"] != outcome(whole.output)["weights"]


def test_a_batch_that_grows_is_refused(text_recipe: Make) -> None:
    with pytest.raises(RunError, match=r"train\.batch_ramp.*same streams"):
        train_recipe(text_recipe(train__batch_ramp={"start": 1, "updates": 3}), quiet=True)


def test_a_model_without_a_state_is_refused(text_recipe: Make) -> None:
    recipe = text_recipe(
        model__from="gpt2-small",
        task__carry_state=True,
        model__config={"n_layer": 1, "n_embd": 8, "n_head": 2},
    )
    with pytest.raises(CheckpointError, match="a gpt2 keeps no state") as caught:
        train_recipe(recipe, quiet=True)
    assert "lstm-small" in (caught.value.hint or "")
    assert not Path(recipe.output).exists()


def test_a_batch_that_was_passed_over_leaves_no_state() -> None:
    """Who went before is not known any more, so the next one begins with nothing."""
    task = CausalLm(CausalLmOptions(max_length=7))
    features, model = features_of(task, some_texts(100)), language_model()
    trainer = trainer_of(task, model, features, Losses())
    first, second, third = (trainer.order.take(Cursor(0, at), 3)[0] for at in (0, 3, 6))

    def nats(which: Any) -> list[float]:
        batch: PackedBatch = features.batch(which)
        return trainer.strategy.forward(model, batch).nats.tolist()

    nats(first)
    trainer.strategy.commit()
    nats(second)
    trainer.strategy.discard()
    skipped = nats(third)
    trainer.strategy.begin_epoch()
    assert skipped == nats(third)
