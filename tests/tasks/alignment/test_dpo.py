"""`dpo` against transformers, as a run, and with what it must refuse."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from pretune.api import evaluate
from pretune.bundle.bundle import load
from pretune.data.batch import FeatureSet, Skipped
from pretune.errors import DataError, RecipeError, RunError
from pretune.inference.chat import Conversation
from pretune.inference.reference import reference_scores, with_scores
from pretune.tasks.alignment.dpo import Dpo, DpoOptions
from pretune.tasks.alignment.preference_losses import (
    PAIR_LOSSES,
    LossSettings,
    PairScores,
    kto,
)
from pretune.tasks.base import FROM_CHECKPOINT, REFERENCE
from pretune.tasks.features import record_features
from pretune.training.run import train_recipe
from tests.tasks.alignment.preferences import ROWS, answering, recipe, records, saved, write

CPU = torch.device("cpu")
#: What a pair says of the model, in training and in evaluations.
PAIR_FIGURES = [
    "reward_accuracy",
    "reward_margin",
    "chosen_reward",
    "rejected_reward",
    "chosen_log_prob",
    "rejected_log_prob",
]
#: Numbers that only some formulas have, with other values than usual.
CHANGED = {
    "label_smoothing": 0.2,
    "gamma": 3.0,
    "desirable_weight": 2.0,
    "undesirable_weight": 2.0,
}


def features(task: Dpo, rows: list[dict[str, Any]] = ROWS) -> FeatureSet:
    bundle = answering()
    task.bind(bundle.tokenizer)
    made = record_features(task, records(task, rows), bundle.tokenizer)
    if task.reference is None:
        return made
    return with_scores(made, reference_scores(task, answering(1).model, made, device=CPU))


def test_log_probabilities_are_those_of_transformers(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sft")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    task = Dpo(DpoOptions(max_length=96, loss="orpo", reference=None))
    made = features(task)
    model = answering().model.eval()
    batch = made.batch(np.arange(len(made)))
    with torch.no_grad():
        ours = task.forward(model, batch)
    for place, feature in enumerate(batch.index.tolist()):
        for side, column in enumerate(("chosen", "rejected")):
            talk = [{"role": "user", "content": ROWS[feature]["prompt"]}]
            prompt = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
            answer = {"role": "assistant", "content": ROWS[feature][column]}
            whole = tokenizer.apply_chat_template([*talk, answer], tokenize=False)
            begin = tokenizer(prompt).input_ids
            ids = begin + tokenizer(whole[len(prompt) :]).input_ids
            with torch.no_grad():
                logits = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
            steps = range(len(begin), len(ids))
            expected = sum(float(logits[i - 1, ids[i]]) for i in steps)
            number = 2 * place + side
            assert float(ours.log_probs[number]) == pytest.approx(expected, rel=1e-5)
            assert int(ours.tokens[number]) == len(steps), "the end is a token of the reply"


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "orpo", "kto"])
def test_a_pair_costs_the_same_alone_or_in_a_batch(loss: Any) -> None:
    task = Dpo(DpoOptions(max_length=96, loss=loss))
    made, model = features(task), answering().model.eval()
    batch = made.batch(np.arange(len(made)))
    with torch.no_grad():
        together = task.each_loss(task.forward(model, batch), batch).sums
        for place, feature in enumerate(batch.index.tolist()):
            single = made.batch(np.array([feature]))
            alone = task.loss(task.forward(model, single), single)
            assert float(alone.sum) == pytest.approx(float(together[place]), rel=1e-6, abs=1e-6)
            assert alone.count == 1


def test_a_run_learns(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    changes = {"train.epochs": 20, "train.log_every": 1}
    result = train_recipe(recipe("dpo", tmp_path, **changes), quiet=True)
    assert result.metrics["reward_accuracy"] == 1.0
    # Between evaluations, too, it is seen whether both replies become less likely.
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    margins = [row["train/reward_margin"] for row in log if "train/loss" in row]
    assert len(margins) == 60
    assert abs(margins[0]) < 0.2
    assert margins[-1] > 1
    assert result.metrics["loss"] < 0.3
    # The saved model finds its reference again, chats, and is an instruct model.
    again = evaluate(tmp_path / "run", tmp_path / "v.jsonl", device="cpu").metrics
    assert again == pytest.approx(result.metrics, rel=1e-5)
    talk = Conversation(load(tmp_path / "run"), device="cpu")
    assert isinstance(talk, Conversation)


def test_at_the_start_the_loss_is_ln_2_also_with_lora(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    for lora in (None, {"rank": 2}):
        changes = {"train.learning_rate": 1e-9, "train.epochs": 1, "train.lora": lora}
        output = str(tmp_path / f"run-{lora is None}")
        result = train_recipe(recipe("dpo", tmp_path, **changes, output=output), quiet=True)
        assert result.metrics["loss"] == pytest.approx(np.log(2), abs=1e-5)
        assert result.metrics["reward_margin"] == pytest.approx(0, abs=1e-4)


def test_kto_reads_pairs_and_replies_alike(tmp_path: Path) -> None:
    task = Dpo(DpoOptions(max_length=96, loss="kto"))
    pairs = features(task)
    single = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in ROWS
        for name in ("chosen", "rejected")
    ]
    both = features(task, single)
    assert pairs.tokens.tolist() == both.tokens.tolist()
    assert pairs.targets["wanted"].tolist() == [True, False] * len(ROWS)
    # The second sequence has another record's reply after the same prompt.
    batch = both.batch(np.array([0]))
    first, second = torch.split(batch.tokens, list(batch.layout.lengths))
    assert first[:5].tolist() == second[:5].tolist()
    assert first.tolist() != second.tolist()


def test_kto_starts_at_one_half() -> None:
    task = Dpo(DpoOptions(max_length=96, loss="kto"))
    made, model = features(task), answering().model.eval()
    made = with_scores(made, reference_scores(task, model, made, device=CPU))
    batch = made.batch(np.arange(len(made)))
    with torch.no_grad():
        loss = task.loss(task.forward(model, batch), batch)
    assert float(loss.sum) / loss.count == pytest.approx(0.5, abs=1e-5)


def test_kto_learns_by_the_baseline_of_the_whole_batch() -> None:
    """In training the mean log-ratio of other records' replies; in an evaluation 0."""
    task = Dpo(DpoOptions(max_length=96, loss="kto", beta=0.1, sft_weight=0.5))
    made, model = features(task), answering().model.eval()
    batch = made.batch(np.arange(len(made)))
    batch.targets[REFERENCE].sub_(3)
    outputs = task.forward(model, batch)
    ratios = (outputs.log_probs.detach().view(-1, 2) - batch.targets[REFERENCE]).numpy()
    wanted = batch.targets["wanted"].numpy()
    baseline = float(ratios[:, 1].mean())
    assert baseline > 1, "the test would not tell it from 0"
    # Of wanted replies, half of the cross-entropy a token.
    likely = (-outputs.log_probs / outputs.tokens).detach().view(-1, 2)[:, 0].numpy() * wanted / 2

    def expected(level: float) -> float:
        signs = np.where(wanted, 1, -1)
        value = 1 / (1 + np.exp(-0.1 * signs * (ratios[:, 0] - level)))
        return float((1 - value + likely).sum())

    trained = task.loss(outputs, batch)
    assert trained.sum.item() == pytest.approx(expected(baseline), rel=1e-5)
    assert float(trained.parts["baseline"]) / trained.count == pytest.approx(baseline, rel=1e-5)
    with torch.no_grad():
        evaluated = task.loss(task.forward(model, batch), batch)
    assert evaluated.sum.item() == pytest.approx(expected(0), rel=1e-5)


def test_kto_is_not_trained_in_parts(tmp_path: Path) -> None:
    """Its baseline would be the mean over a part, and the update another one."""
    saved(tmp_path / "sft")
    changes = {"task.loss": "kto", "train.accumulate": 2}
    with pytest.raises(RunError, match="accumulate: the loss of dpo") as error:
        train_recipe(recipe("dpo", tmp_path, **changes), quiet=True)
    assert "train.accumulate=1" in (error.value.hint or "")
    assert not list((tmp_path / "run").glob("**/*.safetensors"))


@pytest.mark.parametrize("loss", ["sigmoid", "orpo", "kto"])
def test_the_figures_of_training_are_those_of_evaluations(loss: Any) -> None:
    task = Dpo(DpoOptions(max_length=96, loss=loss))
    made, model = features(task), answering().model.eval()
    metrics, sums, count = task.metrics(made), dict[str, float](), 0
    for part in (np.arange(2), np.arange(2, len(made))):
        batch = made.batch(part)
        outputs = task.forward(model, batch)
        metrics.update(outputs, batch)
        own = task.loss(outputs, batch)
        count += own.count
        for name, value in own.parts.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    means = {name: value / count for name, value in sums.items() if name != "baseline"}
    figures = metrics.result()
    names = PAIR_FIGURES if loss != "kto" else PAIR_FIGURES[:1]
    assert means == pytest.approx({name: figures[name] for name in names}, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rejected": ROWS[0]["chosen"]}, "both replies are equal"),
        ({"chosen": "  "}, "an empty reply"),
        ({"rejected": None}, "an empty reply"),
        ({"chosen": "x" * 900, "rejected": "x" * 900 + "y"}, "differ only where they were cut"),
    ],
)
def test_what_teaches_nothing_is_passed_over(change: dict[str, Any], why: str) -> None:
    rows = [{**ROWS[0], **change}, *ROWS[1:]]
    made = features(Dpo(DpoOptions(max_length=40, loss="orpo", reference=None)), rows)
    assert len(made) == len(ROWS) - 1
    (skipped,) = made.skipped
    assert isinstance(skipped, Skipped)
    assert (skipped.record, why in skipped.why) == (0, True)


def test_long_prompts_lose_their_beginning_and_long_replies_their_end() -> None:
    rows = [{"prompt": "x " * 300 + "Who?", "chosen": "I " * 300, "rejected": "No."}]
    task = Dpo(DpoOptions(max_length=80, loss="orpo", reference=None))
    made = features(task, rows)
    assert made.truncated == 1
    assert max(made.sequences(np.array([0]))) <= 80
    text = answering().tokenizer.decode(made.batch(np.array([0])).tokens.tolist())
    assert "Who?" in text
    assert text.count("No.") == 1


def test_options_that_make_no_sense() -> None:
    with pytest.raises(ValidationError, match="sigmoid needs a reference"):
        DpoOptions(loss="sigmoid", reference=None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"z_loss": 0.1}, "z_loss belongs to the cross-entropy"),
        ({"loss": "robust", "label_smoothing": 0.5}, "label_smoothing must be below 0.5"),
        ({"label_smoothing": 0.7}, "label_smoothing must be below 0.5"),
        ({"gamma": 3.0}, "sigmoid does not read gamma, only simpo"),
        ({"loss": "simpo", "desirable_weight": 2.0}, "simpo does not read desirable_weight, only"),
        ({"loss": "ipo", "undesirable_weight": 2.0}, "does not read undesirable_weight, only kto"),
    ],
)
def test_options_that_would_do_nothing(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        DpoOptions(**options)
    # A checkpoint that has them still opens.
    DpoOptions.model_validate(options, context=FROM_CHECKPOINT)


@pytest.mark.parametrize("loss", [*PAIR_LOSSES, "kto"])
def test_options_are_refused_where_the_formula_does_not_read_them(loss: Any) -> None:
    """What is accepted changes the loss, and what is refused would not."""
    usual = DpoOptions(loss=loss)
    numbers = [torch.tensor([-9.0, -4.0]), torch.tensor([-7.0, -8.0]), torch.tensor([3.0, 5.0])]
    pairs = PairScores(*numbers, torch.tensor([4.0, 2.0]), -torch.ones(2), -torch.zeros(2))

    def losses(how: LossSettings) -> list[float]:
        if loss == "kto":
            wanted = torch.tensor([True, False])
            return kto(pairs.chosen_ratio, wanted, torch.tensor(0.5), how).tolist()
        return PAIR_LOSSES[loss](pairs, how).tolist()

    for name, value in CHANGED.items():
        reads = losses(replace(usual.settings, **{name: value})) != losses(usual.settings)
        with nullcontext() if reads else pytest.raises(ValidationError, match=name):
            DpoOptions(**{"loss": loss, name: value})


def test_random_weights_are_no_reference(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    changes = {"model.from": "gpt2-small", "model.tokenizer": str(tmp_path / "sft")}
    with pytest.raises(RecipeError, match="random weights"):
        train_recipe(recipe("dpo", tmp_path, **changes), quiet=True)


def test_kto_needs_both_kinds(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    data = [{"prompt": "a", "completion": "b", "label": True}] * 3
    changes = {"task.loss": "kto", "data.train": str(write(tmp_path / "k.jsonl", data))}
    with pytest.raises(DataError, match="column 'label': every reply is wanted"):
        train_recipe(recipe("dpo", tmp_path, **changes, **{"data.validation": None}), quiet=True)


def test_the_reference_is_kept_by_the_names_of_the_data(tmp_path: Path) -> None:
    made = features(Dpo(DpoOptions(max_length=96)))
    assert made.targets[REFERENCE].shape == (len(ROWS), 2)
    assert np.isfinite(made.targets[REFERENCE]).all()


def test_what_the_judge_compares_with_is_checked_before_training() -> None:
    judge: Any = [{"exact": "answer"}]
    task = Dpo(DpoOptions(judge=judge))
    assert "answer" in task.optional
    with pytest.raises(DataError, match="no column 'answer', which the reward compares with"):
        records(task)
    rows = [{**row, "answer": "4"} for row in ROWS]
    assert records(task, rows).rows[0]["answer"] == "4"
    rows[2]["answer"] = None
    with pytest.raises(DataError, match=r"p.jsonl, line 3, column 'answer'"):
        records(task, rows)
