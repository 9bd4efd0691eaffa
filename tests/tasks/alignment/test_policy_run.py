"""`ppo`, `grpo` and `rloo` as runs: from a recipe to a model that replies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from pretune.api import evaluate
from pretune.bundle.bundle import load, save
from pretune.bundle.convert import convert
from pretune.cli.train import _show_result
from pretune.data.batch import PackedBatch
from pretune.errors import (
    CheckpointError,
    DataError,
    PretuneError,
    RecipeError,
    RewardError,
    RunError,
)
from pretune.evaluation.compare import compare
from pretune.evaluation.examine import examine
from pretune.inference.chat import Conversation
from pretune.inference.predict import task_of
from pretune.publishing.publish import stage
from pretune.recipe.recipe import Recipe, parse_override
from pretune.tasks.alignment.dpo import Dpo, DpoOptions
from pretune.tasks.alignment.grpo import Grpo
from pretune.tasks.alignment.reward import Reward, RewardOptions
from pretune.training.checkpoint import read_values
from pretune.training.data import examined_records
from pretune.training.loop import Trainer
from pretune.training.run import resume, train_recipe
from pretune.training.run_folder import RunFolder
from pretune.training.sample_sheet import SAMPLES, read_sheet
from pretune.training.stop import Interrupted, Stopped
from tests.tasks.alignment.preferences import ROWS, recipe, saved, write
from tests.training.outcomes import assert_alike, outcome, stopped_after

ASKED = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Recipe]:
    saved(tmp_path / "sft")

    def make(name: str, folder: str = "run", **changes: Any) -> Recipe:
        usual = {
            "task.max_length": 64,
            "task.max_new_tokens": 6,
            "task.rollout": 4,
            "task.reward": {"length": 12},
            "train.epochs": 1,
            "train.batch_size": 4,
            "train.log_every": 1,
            "train.eval_every": 100,
            "output": str(tmp_path / folder),
        }
        own = recipe(name, tmp_path, **{**usual, **changes})
        write(tmp_path / "p.jsonl", ASKED)
        write(tmp_path / "v.jsonl", ASKED[:4])
        return own

    return make


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo"])
def test_a_run_learns_and_is_used(name: str, made: Callable[..., Recipe], tmp_path: Path) -> None:
    options = {"task.reward": {"match": "e"}, "task.judge": {"match": "e", "weight": -1}}
    options |= {"task.group": 8, "task.rollout": 6}
    options |= {"task.beta": 0.01, "train.epochs": 8 if name == "ppo" else 12}
    options |= {"train.batch_size": 24, "train.learning_rate": 5e-3}
    result = train_recipe(made(name, **options), quiet=True)
    logs = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open(encoding="utf-8")]
    rewards = [entry["train/reward"] for entry in logs if "train/reward" in entry]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2
    figures = {"loss", "reward", "reward_se", "judge", "kl", "reply_tokens", "share_without_end"}
    assert set(result.metrics) == {*figures, "distinct_2"}
    samples = result.details["samples"]
    rewards = [sample["reward"] for sample in samples]
    assert len(samples) == 4
    assert result.metrics["reward"] == np.mean(rewards)
    assert result.metrics["reward_se"] == pytest.approx(np.std(rewards, ddof=1) / 2)
    assert result.metrics["judge"] == np.mean([sample["judge"] for sample in samples])
    assert result.metrics["kl"] > 0
    # The saved model finds its reference and its reward again, replies, and is an instruct model.
    again = evaluate(tmp_path / "run", tmp_path / "v.jsonl", device="cpu").metrics
    assert again == pytest.approx(result.metrics, rel=1e-4)
    bundle = load(tmp_path / "run")
    assert isinstance(Conversation(bundle, device="cpu"), Conversation)
    dpo = load(tmp_path / "run", task=Dpo(DpoOptions(max_length=64)))
    weights = dpo.model.state_dict()
    assert all(torch.equal(bundle.model.state_dict()[key], weights[key]) for key in weights)


def test_transformers_reads_the_language_model(made: Callable[..., Recipe], tmp_path: Path) -> None:
    train_recipe(made("ppo"), quiet=True)
    folder = tmp_path / "run" / "last"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    model = load(folder).model.eval()
    ids = [5, 6, 7, 8]
    with torch.no_grad():
        ours, _ = model.start([ids])  # type: ignore[operator]
        assert torch.allclose(ours[0], theirs(torch.tensor([ids])).logits[0, -1], atol=1e-4)
    stored = load_file(folder / "model.safetensors")
    assert stored["v_head.summary.weight"].shape == (1, 32)  # as TRL calls it
    assert torch.equal(stored["v_head.summary.weight"], model.value.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ppo", {"task.passes": 2, "task.target_kl": 0.1, "task.kl_horizon": 20}),
        ("grpo", {"task.group": 2, "train.lora": {"rank": 2}}),
        ("ppo", {"task.passes": 2, "train.lora": {"rank": 2}, "train.ema": 0.5}),
        ("grpo", {"task.group": 2, "task.passes": 2, "train.ema": 0.5, "train.guard": "rollback"}),
    ],
)
def test_a_run_that_was_stopped_inside_a_rollout(
    name: str,
    changes: dict[str, Any],
    made: Callable[..., Recipe],
) -> None:
    """What is resumed is bit for bit what was never stopped: also the reference is the same."""
    train_recipe(made(name, "whole", **changes), quiet=True)
    part = made(name, "part", **changes)
    with stopped_after(1):
        train_recipe(part, quiet=True)
    resume(part.output, quiet=True)
    assert_alike(outcome(part.output), outcome(Path(part.output).with_name("whole")))


def evaluations(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").open(encoding="utf-8"))
    return [entry for entry in lines if "validation/reward" in entry]


def test_replies_before_training_are_evaluated(
    made: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are those of the reference, and may stay the best."""
    result = train_recipe(made("grpo", **{"task.group": 2, "train.learning_rate": 1e-12}))
    before, after = evaluations(tmp_path / "run")
    assert (before["step"], before["epoch"]) == (0, 0)
    assert before["validation/kl"] == pytest.approx(0, abs=1e-5)
    assert after["step"] == result.steps == 3
    assert result.best_step == 0
    best = load(tmp_path / "run" / "best").model.state_dict()
    start = load(tmp_path / "sft").model.state_dict()
    assert all(torch.equal(best[name], value) for name, value in start.items())
    assert "epoch 0.00  validation" in capsys.readouterr().err
    run_without = made("grpo", "other", **{"task.group": 2, "data.validation": None})
    assert train_recipe(run_without, quiet=True).best_step is None


@pytest.mark.parametrize("better", [True, False])
def test_the_sheet_has_the_replies_of_the_saved_models(
    better: bool,
    made: Callable[..., Recipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where no reply is worth more than before, the best model is the start: the last is shown."""
    changes = {"task.group": 8, "task.rollout": 6, "train.batch_size": 24, "train.epochs": 6}
    changes |= {"train.learning_rate": 5e-3, "train.keep": 99, "train.eval_every": 4}
    # No reply of these models ends by itself: by that no later one is better.
    changes |= {"task.reward": {"match": "e"}}
    changes |= {"train.best": "reward" if better else "share_without_end"}
    result = train_recipe(made("grpo", **changes), quiet=True)
    assert bool(result.best_step) == better
    rows = read_sheet(tmp_path / "run" / SAMPLES)
    assert [row.history for row in rows] == [(row["prompt"],) for row in ASKED[:4]]
    last = result.best_step or result.steps
    for step, replies in ((0, [row.before for row in rows]), (last, [row.after for row in rows])):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
        again = evaluate(folder, tmp_path / "v.jsonl", device="cpu").details["samples"]
        assert [{"reply": r.reply, **r.scores} for r in replies] == [
            {"reply": sample["reply"], "reward": sample["reward"]} for sample in again
        ]
        assert {reply.step for reply in replies} == {step}
    assert [row.before.reply for row in rows] != [row.after.reply for row in rows]
    _show_result(result, as_json=False)
    shown = capsys.readouterr().out
    assert "4 held-out prompts; reward" in shown
    assert shown.count("   after:  ") == 3
    assert "samples.jsonl" in shown


@pytest.mark.parametrize("guard", ["stop", "rollback"])
@pytest.mark.parametrize("saved_it", [False, True])
def test_a_run_that_was_stopped_before_the_first_update(
    guard: str, saved_it: bool, made: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first evaluation is in the logs once."""
    options = {"task.group": 2, "train.guard": guard}
    train_recipe(made("grpo", "whole", **options), quiet=True)
    part, original = made("grpo", "part", **options), Trainer._save

    def stopping(self: Trainer, *, best: bool) -> None:
        if saved_it:
            original(self, best=best)
        raise Stopped(0)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stopping)
        with pytest.raises(Interrupted):
            train_recipe(part, quiet=True)
    resume(part.output, quiet=True)
    assert [entry["step"] for entry in evaluations(Path(part.output))] == [0, 3]
    assert_alike(outcome(part.output), outcome(Path(part.output).with_name("whole")))


@pytest.mark.parametrize(
    ("limits", "eval_every", "figure", "step"),
    [
        ({"kl_k3": 1e-7, "judge": 9}, 100, "kl_k3", 5),  # of the second rollout
        ({"reply_tokens": {"below": 100}}, 100, "reply_tokens", 0),
        ({"distinct_2": {"above": 5, "below": -1}, "ratio": {"below": 2}}, 1, "ratio", 1),
    ],
)
def test_a_figure_ends_the_run(
    limits: dict[str, Any],
    eval_every: int,
    figure: str,
    step: int,
    made: Callable[..., Recipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is evaluated and saved then, and says why."""
    options = {"task.group": 1, "train.epochs": 3, "train.eval_every": eval_every}
    options |= {"task.judge": {"length": 3}, "train.stop_on": limits, "train.learning_rate": 1e-2}
    result = train_recipe(made("ppo", **options))
    stopped = result.stopped_on
    assert stopped is not None
    assert stopped["figure"] == figure
    assert result.steps == stopped["step"]
    assert stopped["limit"].startswith("above 1e-07" if figure == "kl_k3" else "below ")
    assert not result.stopped_early
    assert result.steps == step
    assert evaluations(tmp_path / "run")[-1]["step"] == step
    assert read_values(tmp_path / "run" / "last")["course"]["steps"] == step
    shown = capsys.readouterr().err
    assert shown.count(f"(train.stop_on): stopping after update {step}") == 1
    # It is finished: to resume it changes nothing.
    assert resume(tmp_path / "run", quiet=True) == result


def test_a_limit_may_change_when_a_run_is_resumed(made: Callable[..., Recipe]) -> None:
    part = made("grpo", **{"task.group": 2, "train.stop_on": {"kl": 1e9}})
    with stopped_after(1):
        train_recipe(part, quiet=True)
    result = resume(part.output, {"train.stop_on": {"reply_tokens": 1}}, quiet=True)
    assert result.stopped_on is not None
    assert result.stopped_on["step"] == result.steps == 2


def test_a_limit_of_a_figure_that_nobody_has(made: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no figure is called 'entropi'") as error:
        train_recipe(made("grpo", **{"train.stop_on.entropi": 1}), quiet=True)
    assert "Did you mean 'entropy'" in str(error.value)
    with pytest.raises(RunError, match="no figure is called 'judge'"):  # there is none
        train_recipe(made("grpo", **{"train.stop_on": {"judge": 1}}), quiet=True)
    assert not (tmp_path / "run").exists()
    for wrong in ({"kl": True}, {"kl": {}}, {"kl": {"abov": 1}}, {"kl": "much"}):
        with pytest.raises(RecipeError, match=r"train\.stop_on\.kl"):
            made("grpo", **{"train.stop_on": wrong})
    with pytest.raises(RecipeError, match=r"kl: should be a number, or {above: X}, or .* 'abc'"):
        made("grpo", **{"train.stop_on": {"kl": "abc"}})
    _, without_space = parse_override("train.stop_on={kl:3}")
    with pytest.raises(RecipeError, match=r"stop_on\.kl:3: .* a space after every colon: {kl: 3}"):
        made("grpo", **{"train.stop_on": without_space})


def test_a_limit_that_the_last_update_passes_stops_nothing(
    made: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"train.stop_on": {"reply_tokens": {"below": 100}}, "train.max_steps": 1}
    result = train_recipe(made("ppo", **limits, **{"data.validation": None}))
    assert result.stopped_on is not None
    shown = capsys.readouterr().err
    assert "below 100 (train.stop_on), after the last update" in shown
    assert "stopping" not in shown


@pytest.mark.parametrize(
    ("name", "samples", "note"),
    [
        ("ppo", 8, "reply to 4 prompts (task.samples=8): figures of so few say little; hold back"),
        ("dpo", 100, "reply to 3 prompts (task.samples=100): figures of so few"),
        ("rloo", 1, "reply to 1 prompt (task.samples=1): figures of so few say little; take more"),
        ("dpo", 0, None),
    ],
)
def test_evaluations_of_few_replies_are_told(
    name: str,
    samples: int,
    note: str | None,
    made: Callable[..., Recipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = {"task.samples": samples, "train.max_steps": 1}
    of_dpo = {**few, "task.max_length": 64, "task.max_new_tokens": 6}
    train_recipe(recipe(name, tmp_path, **of_dpo) if name == "dpo" else made(name, **few))
    shown = capsys.readouterr().err
    assert shown.count("evaluations reply to") == (note is not None)
    assert note is None or note in shown


def test_the_models_beside_a_run_may_not_change(
    made: Callable[..., Recipe], tmp_path: Path
) -> None:
    tasks: dict[str, Any] = {"scores": Reward(RewardOptions(max_length=64))}
    tasks["judges"] = Reward(RewardOptions(max_length=32))
    for name, task in tasks.items():
        bundle = load(tmp_path / "sft", task=task)
        (tmp_path / name).mkdir()
        save(bundle, tmp_path / name)
    shutil.copytree(tmp_path / "sft", tmp_path / "other")
    options = {"task.reward": {"run": str(tmp_path / "scores")}, "task.group": 2}
    options |= {"task.judge": {"run": str(tmp_path / "judges")}}
    part = made("grpo", **options, **{"task.reference": str(tmp_path / "other")})
    with stopped_after(1):
        train_recipe(part, quiet=True)
    for name, key in (("scores", "reward"), ("judges", "judge"), ("other", "reference")):
        file = tmp_path / name / "config.json"
        before = file.read_text(encoding="utf-8")
        file.write_text(before + "\n", encoding="utf-8")
        with pytest.raises(RunError, match=rf"other files of \S*{name} \(task\.{key}\) than"):
            resume(part.output, quiet=True)
        file.write_text(before, encoding="utf-8")
    (tmp_path / "scores" / "README.md").write_text("Words.", encoding="utf-8")
    assert resume(part.output, quiet=True).steps == 3


def test_what_looks_wrong_is_said_once(
    made: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a run that was resumed; it is compared with the first evaluation."""
    compared: list[tuple[float, float]] = []

    def warning(self: Grpo, before: Any, now: Any) -> str | None:
        compared.append((before["kl"], now["kl"]))
        return "it rose alone" if now["kl"] != before["kl"] else None

    monkeypatch.setattr(Grpo, "warning", warning)
    part = made("grpo", **{"task.group": 2, "train.eval_every": 1, "train.learning_rate": 1e-2})
    with stopped_after(2):
        train_recipe(part)
    result = resume(part.output)
    assert result.warnings == ["it rose alone"]
    assert len(compared) == 2
    assert compared[0][0] == compared[0][1] == compared[1][0]
    assert capsys.readouterr().err.count("warning: it rose alone") == 1
    assert result == RunFolder(part.output).result()


@pytest.mark.parametrize("judge", ["nowhere", "my_judge:score"])
def test_a_judge_that_is_not_there(judge: str, made: Callable[..., Recipe], tmp_path: Path) -> None:
    spec = judge if ":" in judge else {"run": str(tmp_path / judge)}
    with pytest.raises(PretuneError, match=f"judge.*{judge.split(':')[0]}"):
        train_recipe(made("grpo", **{"task.judge": spec}), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="no column 'x', which the reward compares with"):
        train_recipe(made("grpo", **{"task.judge": {"exact": "x"}}), quiet=True)


def test_the_guard_goes_back_inside_a_rollout(
    made: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replies that were spoilt are those of the second rollout; the first is there again."""
    calls: list[int] = []
    original = Grpo.advantages

    def spoilt(self: Grpo, attempts: Any) -> Any:
        calls.append(len(attempts))
        targets = original(self, attempts)
        return {name: v * np.nan if len(calls) == 2 else v for name, v in targets.items()}

    monkeypatch.setattr(Grpo, "advantages", spoilt)
    guard = {"action": "rollback", "margin": 1}
    options = {"task.group": 2, "task.passes": 2, "train.save_every": 1, "train.keep": 9}
    result = train_recipe(made("grpo", **options, **{"train.guard": guard}), quiet=True)
    assert result.steps == 6
    assert "back to update" in result.rescues[0]
    assert calls[:2] == [8, 4]


@pytest.mark.parametrize(
    ("name", "lora"), [("grpo", None), ("grpo", {"rank": 2}), ("ppo", {"rank": 2})]
)
def test_at_the_start_the_reference_is_the_model(
    name: str, lora: dict[str, Any] | None, made: Callable[..., Recipe], tmp_path: Path
) -> None:
    """With LoRA it is the model below the adapters."""
    rates = {"train.learning_rate": 1e-2, "train.lora": lora, "task.group": 2}
    train_recipe(made(name, **rates), quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").open(encoding="utf-8")
    logs = [entry for entry in map(json.loads, lines) if "train/kl" in entry]
    assert logs[0]["train/kl"] == pytest.approx(0, abs=1e-5)
    assert logs[-1]["train/kl_k3"] > 1e-4


def test_ppo_with_lora_trains_the_adapter_and_the_values(
    made: Callable[..., Recipe], tmp_path: Path
) -> None:
    """What is saved is the merged model, and beside it what peft puts on the base."""
    lora = {"rank": 2, "targets": ["attention.qkv", "feed_forward.down"]}
    train_recipe(made("ppo", **{"train.lora": lora, "train.learning_rate": 1e-2}), quiet=True)
    last = tmp_path / "run" / "last"
    trained, base = load(last).model.eval(), load(tmp_path / "sft").model.state_dict()
    changed = {n for n, v in trained.state_dict().items() if not torch.equal(v, base.get(n, v))}
    assert changed == {n for n in base if n.endswith(("qkv.weight", "down.weight"))}
    # peft, on the base as the plain language model.
    config = json.loads((last / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["modules_to_save"], config["base_model_name_or_path"]) == (
        ["v_head"],
        str(tmp_path / "sft"),
    )
    opened = peft.AutoPeftModelForCausalLM.from_pretrained(last / "adapter").eval()
    ids = [5, 6, 7, 8]
    with torch.no_grad():
        theirs = opened(torch.tensor([ids])).logits[0]
        assert torch.allclose(trained(PackedBatch.of([ids])), theirs, atol=1e-4)
    # The values are in both files.
    whole = load_file(last / "model.safetensors")
    adapter = load_file(last / "adapter" / "adapter_model.safetensors")
    for part in ("weight", "bias"):
        stored = adapter[f"base_model.model.v_head.summary.{part}"]
        assert torch.equal(stored, whole[f"v_head.summary.{part}"])
    # It is used as every run is: it replies, is evaluated, converted, and trained further.
    convert(last, tmp_path / "copy")
    before = evaluate(last, tmp_path / "v.jsonl", device="cpu").metrics
    assert evaluate(tmp_path / "copy", tmp_path / "v.jsonl", device="cpu").metrics == before
    assert list(Conversation(load(tmp_path / "copy"), device="cpu").say("Add 2 and 2"))
    more = made("ppo", "more", **{"model.from": str(last), "train.lora": lora})
    assert train_recipe(more, quiet=True).steps


def test_a_reward_that_is_no_number(
    made: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def score(replies):\n    return [1.0, float('nan'), *([2.0] * (len(replies) - 2))]\n"
    (tmp_path / "spoilt_rewards.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RunError, match=r"spoilt_rewards:score gave .*nan.* for reply 2"):
        train_recipe(made("grpo", **{"task.reward": "spoilt_rewards:score"}), quiet=True)
    # What a checkpoint names is not run.
    code = "def score(replies):\n    return [1.0 for _ in replies]\n"
    (tmp_path / "whole_rewards.py").write_text(code, encoding="utf-8")
    train_recipe(made("grpo", "other", **{"task.reward": "whole_rewards:score"}), quiet=True)
    with pytest.raises(CheckpointError, match="is not run"):
        evaluate(tmp_path / "other", tmp_path / "v.jsonl", device="cpu")


def test_a_run_goes_on_once_its_reward_is_mended(
    made: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "good = False\n\n\ndef score(replies):\n    return [1.0 if good else None] * len(replies)\n"
    )
    (tmp_path / "mended_rewards.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "run"
    again = f"Once it is mended, the run goes on: pretune train --resume {folder}"
    with pytest.raises(RewardError) as error:
        train_recipe(made("grpo", **{"task.reward": "mended_rewards:score"}), quiet=True)
    assert str(error.value).endswith(again)
    monkeypatch.setattr("mended_rewards.good", True)
    assert resume(folder, quiet=True).steps


def test_a_rule_compares_with_a_column_of_the_data(
    made: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_recipe(made("rloo", **{"task.reward": {"exact": "completion"}}))
    assert "not used" not in capsys.readouterr().out
    with pytest.raises(DataError, match="no column 'completio', which the reward compares with"):
        train_recipe(made("rloo", "other", **{"task.reward": {"exact": "completio"}}), quiet=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, r"p\.jsonl, line 2, column 'answer': .*found nothing"),
        ({"prompt": "a", "answer": ["1"]}, r"line 2, column 'answer': .*found a list"),
        (
            {"messages": [{"role": "system", "content": "Be."}], "answer": 1},
            "line 2: the prompt ends with a message of the system",
        ),
    ],
)
def test_prompts_that_cannot_be_used_are_named_before_training(
    row: dict[str, Any], message: str, made: Callable[..., Recipe], tmp_path: Path
) -> None:
    own = made("rloo", **{"task.reward": {"exact": "answer"}})
    good = {"prompt": "a", "answer": 4}
    write(tmp_path / "v.jsonl", [good])
    write(tmp_path / "p.jsonl", [good, row])
    with pytest.raises(DataError, match=message):
        train_recipe(own, quiet=True)
    # The same of what it is evaluated on.
    write(tmp_path / "v.jsonl", [good, row])
    write(tmp_path / "p.jsonl", [good])
    with pytest.raises(DataError, match=message.replace("p\\.", "v\\.")):
        train_recipe(own, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_rule_compares_with_a_column_of_another_name(
    made: Callable[..., Recipe], tmp_path: Path
) -> None:
    own = made("rloo", **{"task.reward": {"exact": "completion"}, "train.max_steps": 1})
    own = own.changed({"data.columns": {"completion": "answer"}})
    for name in ("p.jsonl", "v.jsonl"):
        write(tmp_path / name, [{"prompt": "a", "answer": 4}])
    assert train_recipe(own, quiet=True).steps == 1


def test_policies_are_compared(made: Callable[..., Recipe], tmp_path: Path) -> None:
    for name, temperature in (("one", 1.0), ("two", 1.0), ("three", 0.5)):
        options = {"task.group": 2, "task.temperature": temperature}
        options |= {"task.reward": [{"length": 12}, {"match": "e", "name": "vowel"}]}
        options |= {"task.judge": [{"length": 3}, {"length": 5}], "task.end_penalty": 0.5}
        own = made("grpo", name, **options)
        train_recipe(own.changed({"seed": ord(name[0])}), quiet=True)
    names = ["one", "two", "three"]
    task = task_of(load(tmp_path / "one"))
    data = examined_records(str(tmp_path / "one"), task, None, columns={})
    looked = [examine(load(tmp_path / name), data, device="cpu") for name in names]
    compared = compare(names[:2], looked[:2], resamples=20).to_dict()["runs"]
    for name, figures in zip(names, compared, strict=False):
        own = evaluate(tmp_path / name, tmp_path / "v.jsonl", device="cpu").metrics
        assert {"reward_length", "reward_vowel", "judge"} <= set(own)
        whole = own["reward_length"] + own["reward_vowel"]
        assert own["reward"] == pytest.approx(whole - 0.5 * own["share_without_end"])
        for metric in sorted({*own} - {"distinct_2", "reward_se"}):
            assert figures["figures"][metric]["value"] == pytest.approx(own[metric], abs=1e-6)
    with pytest.raises(RunError, match=r"task\.temperature=1\.0") as error:
        compare(names[1:], looked[1:])
    assert "--set 'reward=[" in str(error.value)


def test_what_is_published_names_no_folder_of_this_machine(
    made: Callable[..., Recipe], tmp_path: Path
) -> None:
    train_recipe(made("rloo", **{"task.reference": str(tmp_path / "sft")}), quiet=True)
    stage(tmp_path / "run", "me/x", tmp_path / "staged")
    for file in (tmp_path / "staged").glob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    values = json.loads((tmp_path / "staged/pretune.json").read_text(encoding="utf-8"))
    assert values["state"]["reference"] == values["options"]["reference"] == "sft"


def test_without_a_reward_nothing_is_written(made: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing says how good a reply is"):
        train_recipe(made("ppo", **{"task.reward": None}), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_start_from_random_weights_is_refused(made: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match="random weights"):
        train_recipe(made("grpo", **{"model.from": "gpt2-small"}), quiet=True)


def test_an_output_layer_of_its_own_is_refused(made: Callable[..., Recipe], tmp_path: Path) -> None:
    """The head of values is new, but the output layer is the file's."""
    folder = tmp_path / "sft"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=False)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="output layer of its own"):
        train_recipe(made("ppo"), quiet=True)
