"""What `dpo` writes in an evaluation, and how far that is from the reference."""

from __future__ import annotations

import pickle
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from pretune.bundle.bundle import save
from pretune.data.batch import FeatureSet
from pretune.decoding.continuations import Generation
from pretune.evaluation.examine import examine
from pretune.inference.reference import reference_scores, with_scores
from pretune.inference.rewards import reward_function
from pretune.tasks.alignment.dpo import Dpo, DpoOptions
from pretune.tasks.dialogue.replies import distinct
from pretune.tasks.features import record_features
from pretune.training import run
from pretune.training.run import train_recipe
from pretune.training.validation import Evaluation, evaluate_features
from tests.tasks.alignment.preferences import ROWS, answering, recipe, records, saved

CPU = torch.device("cpu")
SMALL = {"max_length": 96, "max_new_tokens": 6}
LETTER = {"match": "o"}


def equipped(task: Dpo, rows: list[dict[str, Any]] = ROWS) -> FeatureSet:
    """The features of an evaluation, for a task that has its reference and its judge."""
    tokenizer, other = answering().tokenizer, answering(1).model.eval()
    task.bind(tokenizer)
    made = record_features(task, records(task, rows), tokenizer, evaluation=True)
    if task.judge is not None:
        task.judging = reward_function(task.judge, device=CPU, tokenizer=tokenizer)
    if task.reference is None:
        return made
    task.reference_model = other
    return with_scores(made, reference_scores(task, other, made, device=CPU))


def evaluated(
    monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]] = ROWS, **options: Any
) -> tuple[Evaluation, list[tuple[list[int], Generation]], list[Any]]:
    """An evaluation, the replies of its records with what was before them, and their decoding."""
    task = Dpo(DpoOptions(**{**SMALL, **options}))
    made, original = equipped(task, rows), Dpo.written
    replies: list[tuple[list[int], Generation]] = []
    decodings: list[Any] = []

    def watched(self: Dpo, model: Any, device: Any, prompts: Any, decoding: Any) -> Any:
        written = original(self, model, device, prompts, decoding)
        replies.extend((prompt.ids, own) for prompt, own in zip(prompts, written, strict=True))
        decodings.append(decoding)
        return written

    monkeypatch.setattr(Dpo, "written", watched)
    result = evaluate_features(task, answering().model, made, device=CPU)
    monkeypatch.undo()
    return result, replies, decodings


@cache
def of_transformers(place: Path, seed: int) -> Any:
    place.mkdir()
    save(answering(seed), place)
    return transformers.AutoModelForCausalLM.from_pretrained(place).eval()


@torch.no_grad()
def log_probability(model: Any, prompt: list[int], reply: tuple[int, ...]) -> float:
    logits = model(torch.tensor([[*prompt, *reply]])).logits[0].double().log_softmax(-1)
    begin = len(prompt) - 1
    return sum(float(logits[begin + i, token]) for i, token in enumerate(reply))


def test_the_kl_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, replies, _ = evaluated(monkeypatch)
    ours, theirs = (of_transformers(tmp_path / str(seed), seed) for seed in (0, 1))
    gaps = [
        log_probability(ours, prompt, reply.tokens) - log_probability(theirs, prompt, reply.tokens)
        for prompt, reply in replies
    ]
    assert len(gaps) == len(ROWS)
    assert result.metrics["kl"] == pytest.approx(np.mean(gaps), rel=1e-5)
    lengths = [len(reply.tokens) for _, reply in replies]
    assert result.metrics["reply_tokens"] == pytest.approx(np.mean(lengths))
    endless = [reply.finish == "length" for _, reply in replies]
    assert result.metrics["share_without_end"] == pytest.approx(np.mean(endless))
    texts = [reply.text.strip() for _, reply in replies]
    assert result.metrics["distinct_2"] == pytest.approx(distinct(texts, 2))


def test_replies_come_from_the_whole_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `chat` draws from; only so the mean of the log-ratios estimates the KL."""
    _, _, (decoding,) = evaluated(monkeypatch, temperature=0.0, top_k=3, top_p=0.5)
    assert (decoding.temperature, decoding.top_k, decoding.top_p) == (1.0, 0, 1.0)
    assert decoding.repetition_penalty == 1.0


def test_equal_prompts_get_different_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**ROWS[0], "rejected": "Never."}
    _, ((_, first), (_, second)), _ = evaluated(monkeypatch, [ROWS[0], row])
    assert first.tokens != second.tokens


def test_the_judge_compares_with_the_chosen_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    def score(text: str) -> float:
        return -abs(len(text) - 12) / 12

    result, replies, _ = evaluated(monkeypatch, judge={"length": 12})
    tokenizer = answering().tokenizer
    duels, scores = [], []
    for prompt, reply in replies:
        text = tokenizer.decode(prompt)
        (chosen,) = (row["chosen"] for row in ROWS if row["prompt"] in text)
        scores.append(score(reply.text.strip()))
        duels.append(float(scores[-1] > score(chosen)))
    assert result.metrics["judge"] == pytest.approx(np.mean(scores))
    assert result.metrics["win_rate"] == pytest.approx(np.mean(duels))
    shown = [sample["judge"] for sample in result.details["samples"]]
    assert sorted(shown) == pytest.approx(sorted(scores))


@pytest.mark.parametrize("wanted", ["always o", "nothing"])
def test_kto_wins_over_wanted_replies_alone(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": wanted if label else "oo oo", "label": label}
        for row in ROWS
        for label in (True, False)
    ]
    task = {"loss": "kto", "judge": {"match": "always"}}
    result, replies, _ = evaluated(monkeypatch, rows, **task)
    assert len(replies) == len(rows)
    assert result.metrics["judge"] == 0.0
    # The judge likes what is wanted: no win; or nothing: all are ties, also with the unwanted.
    assert result.metrics["win_rate"] == (0.0 if wanted == "always o" else 0.5)


@pytest.mark.parametrize("loss", ["orpo", "simpo", "cpo", "sft"])
def test_without_a_reference_there_is_no_kl(monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    result, replies, _ = evaluated(monkeypatch, ROWS[:2], loss=loss, reference=None)
    assert len(replies) == 2
    assert "kl" not in result.metrics
    assert result.metrics["reply_tokens"] > 0


def test_without_samples_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    result, replies, _ = evaluated(monkeypatch, ROWS[:2], samples=0)
    assert not replies
    assert not {"kl", "reply_tokens", "share_without_end", "distinct_2"} & {*result.metrics}
    assert result.details == {}
    with pytest.raises(ValidationError, match="samples must be above 0"):
        DpoOptions(samples=0, judge=[LETTER])  # type: ignore[list-item]


def test_as_many_replies_as_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    result, replies, _ = evaluated(monkeypatch, samples=2)
    assert len(replies) == result.details["replies"] == 2


def test_a_long_prompt_leaves_room_for_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its feature has less room for a reply than what is written needs."""
    rows = [{"prompt": "x " * 90 + "Who?", "chosen": "I", "rejected": "No."}]
    _, ((prompt, reply),), _ = evaluated(monkeypatch, rows, max_new_tokens=60)
    assert len(prompt) <= 48
    assert "Who?" in answering().tokenizer.decode(prompt)
    assert len(prompt) + len(reply.tokens) <= 96


def test_batches_and_processes_change_nothing() -> None:
    task = Dpo(DpoOptions(**SMALL, judge=[LETTER]))  # type: ignore[arg-type]
    made, model = equipped(task), answering().model.eval()
    whole = evaluate_features(task, model, made, device=CPU)
    small = evaluate_features(task, model, made, device=CPU, batch_tokens=1)
    assert small.metrics == pytest.approx(whole.metrics, rel=1e-6, abs=1e-6)
    assert small.details == whole.details
    # What another process sends has neither models nor functions, which cannot be sent.
    task.reference_model = lambda *given, **options: given
    parts = []
    for which in (range(3), range(3, 6)):
        part, batch = task.metrics(made), made.batch(np.array(which))
        task.reference_model = answering(1).model
        with torch.no_grad():
            part.update(task.write(model, task.forward(model, batch), batch), batch)
        task.reference_model = lambda *given, **options: given
        parts.append(pickle.loads(pickle.dumps(part)))  # noqa: S301 - our own
    merged = task.metrics(made)
    for part in parts:
        merged.merge(part)
    figures = merged.result()
    assert figures == pytest.approx({n: whole.metrics[n] for n in figures}, rel=1e-6, abs=1e-6)


def test_what_is_compared_is_what_is_evaluated() -> None:
    """Figures from the grades of single examples are those of the evaluation."""
    task = Dpo(DpoOptions(**SMALL, judge=[LETTER], samples=4))  # type: ignore[arg-type]
    equipped(task)
    bundle = answering()
    own, bundle.task = bundle.task, task
    try:
        task.reference_source = "sft"
        examined = examine(bundle, records(task), device="cpu")
    finally:
        bundle.task = own
    figures = task.figures(examined.sums.sum(0))
    assert {"kl", "win_rate", "judge", "reply_tokens", "share_without_end"} <= {*figures}
    for name, value in figures.items():
        assert float(value) == pytest.approx(examined.metrics[name], rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_run_holds_the_reference_only_where_it_writes(
    lora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "sft")
    held: list[Any] = []
    original = run._Run._trainer

    def watched(self: Any, *given: Any) -> Any:
        held.append(self.task.reference_model)
        return original(self, *given)

    monkeypatch.setattr(run._Run, "_trainer", watched)
    usual = {"train.epochs": 1, "train.lora": lora, "task.max_new_tokens": 4}
    usual |= {"train.learning_rate": 1e-2, "task.judge": LETTER}
    result = train_recipe(recipe("dpo", tmp_path, **usual), quiet=True)
    assert result.metrics["kl"] != 0
    assert 0 <= result.metrics["win_rate"] <= 1
    for name, without in (("a", {"task.samples": 0}), ("b", {"data.validation": None})):
        judge = {"task.judge": None, "output": str(tmp_path / name)}
        train_recipe(recipe("dpo", tmp_path, **{**usual, **judge, **without}), quiet=True)
    # With LoRA it is the model below the adapter, of which there is one copy.
    kinds = [isinstance(own, partial if lora else torch.nn.Module) for own in held[:1]]
    assert (kinds, held[1:]) == ([True], [None, None])
