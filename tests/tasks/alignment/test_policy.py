"""What `ppo`, `grpo` and `rloo` write, score and minimise, against closed forms."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError

from pretune.data.batch import PackedBatch
from pretune.inference.rewards import RewardTerm, SummedReward, reward_function
from pretune.models.lora import adapters, add_lora, merged_state, without_adapters
from pretune.tasks.alignment.policy import ADVANTAGE, OLD, Attempt
from pretune.tasks.alignment.ppo import RETURN, VALUE
from pretune.tasks.base import REFERENCE
from pretune.tasks.losses import IGNORED, NEXT
from tests.tasks.alignment.policies import (
    TASKS,
    attempts,
    gradient,
    policy,
    prompts,
    rollout,
    summed,
)
from tests.tasks.alignment.preferences import ROWS, saved


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("policy") / "sft")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_transformers(sft: Path, temperature: float) -> None:
    """Of what was written, at the temperature; in training as when it was written."""
    task, bundle = policy("ppo", sft, temperature=temperature)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(sft).eval()
    written = attempts(task, bundle)
    assert {len(attempt.tokens) for attempt in written} != {1}
    for attempt in written:
        ids = torch.tensor([[*attempt.prompt, *attempt.tokens]])
        with torch.no_grad():
            scores = (theirs(ids).logits[0] / temperature).log_softmax(-1)
        begin = len(attempt.prompt)
        expected = [float(scores[begin + i - 1, t]) for i, t in enumerate(attempt.tokens)]
        assert attempt.old.tolist() == pytest.approx(expected, abs=2e-5)


def test_what_was_written_had_the_probability_that_is_trained(
    sft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, bundle = policy("grpo", sft)
    generations: list[Any] = []
    original = type(task).written

    def watched(*given: Any) -> Any:
        generations.extend(original(*given))
        return generations

    monkeypatch.setattr(type(task), "written", watched)
    for attempt, generation in zip(attempts(task, bundle), generations, strict=True):
        assert attempt.tokens == generation.tokens
        assert attempt.old.tolist() == pytest.approx(generation.logprobs, abs=1e-5)


def test_replies_are_drawn_at_the_temperature(sft: Path) -> None:
    """The first tokens of many replies are as frequent as the model finds them likely."""
    task, bundle = policy("grpo", sft, temperature=0.5, max_new_tokens=1, group=500)
    made = prompts(task, bundle, ROWS[:1])
    with torch.no_grad():
        written = task.attempt(bundle.model.eval(), made, np.arange(1), 3)
        logits, _ = bundle.model.start([list(written[0].prompt)])  # type: ignore[operator]
    shares = np.bincount([reply.tokens[0] for reply in written], minlength=logits.shape[1]) / 500
    hot, cold = ((logits[0] / t).softmax(-1).numpy() for t in (1.0, 0.5))
    assert np.abs(shares - cold).sum() < np.abs(shares - hot).sum() / 2


def test_equal_prompts_get_different_replies(sft: Path) -> None:
    task, bundle = policy("grpo", sft)
    made = prompts(task, bundle, [ROWS[0]] * 2)
    with torch.no_grad():
        written = task.attempt(bundle.model.eval(), made, np.arange(2), 3)
        again = task.attempt(bundle.model, made, np.arange(2), 3)
        other = task.attempt(bundle.model, made, np.arange(2), 4)
    replies = [attempt.tokens for attempt in written]
    assert len(set(replies)) == 4
    assert [attempt.tokens for attempt in again] == replies
    assert [attempt.tokens for attempt in other] != replies


def test_the_features_of_a_rollout(sft: Path) -> None:
    task, bundle = policy("ppo", sft, whiten=False)
    written = attempts(task, bundle)
    made = task.experience(written)
    for i, attempt in enumerate(written):
        own = slice(made.starts[i], made.starts[i + 1])
        n = len(attempt.tokens)
        assert made.tokens[own].tolist() == [*attempt.prompt, *attempt.tokens[:-1]]
        assert made.targets[NEXT][own][-n:].tolist() == list(attempt.tokens)
        assert set(made.targets[NEXT][own][:-n].tolist()) <= {IGNORED}
        for name, values in ((OLD, attempt.old), (REFERENCE, attempt.reference)):
            assert made.targets[name].dtype == np.float32
            assert made.targets[name][own][-n:].tolist() == values.tolist()
            assert not made.targets[name][own][:-n].any()
        # A reply's reward comes with its last token, and each token costs its log-ratio.
        rewards = -0.05 * (attempt.old.astype(float) - attempt.reference)
        rewards[-1] += attempt.reward
        values = [*attempt.values.astype(float), 0.0]
        errors = [rewards[t] + values[t + 1] - values[t] for t in range(n)]
        expected = [sum(0.95 ** (u - t) * errors[u] for u in range(t, n)) for t in range(n)]
        ours = made.targets[ADVANTAGE][own][-n:]
        assert ours.tolist() == pytest.approx(expected, abs=1e-5)
        returns = made.targets[RETURN][own][-n:]
        assert returns.tolist() == pytest.approx((ours + attempt.values).tolist(), abs=1e-5)
        assert made.targets[VALUE][own][-n:].tolist() == attempt.values.tolist()


def test_whitening_is_over_the_tokens_that_were_written(sft: Path) -> None:
    task, bundle = policy("ppo", sft)
    made = task.experience(attempts(task, bundle))
    actions = made.targets[NEXT] != IGNORED
    advantages = made.targets[ADVANTAGE][actions].astype(float)
    assert (advantages.mean(), advantages.std()) == pytest.approx((0, 1), abs=1e-5)


def by_reply(batch: PackedBatch, name: str) -> tuple[torch.Tensor, ...]:
    return batch.targets[name].split(list(batch.layout.lengths))


def surrogate(name: str, task: Any, batch: Any, log_probs: torch.Tensor) -> torch.Tensor:
    """REINFORCE on a batch: what the gradients of all methods are before the first update."""
    rows = (batch.targets[NEXT] != IGNORED).nonzero()[:, 0]
    lengths = torch.tensor(
        [int((p != IGNORED).sum()) for p in batch.targets[NEXT].split(list(batch.layout.lengths))]
    )
    weights = {
        "ppo": torch.full((len(rows),), 1 / len(rows)),
        "grpo": torch.repeat_interleave(1 / lengths, lengths) / len(lengths),
        "rloo": torch.full((len(rows),), 1 / len(lengths)),
    }[name]
    return -(weights * batch.targets[ADVANTAGE][rows] * log_probs).sum()


@pytest.mark.parametrize("name", TASKS)
def test_the_first_gradient_is_that_of_reinforce(name: str, sft: Path) -> None:
    options = {"value_weight": 0.0} if name == "ppo" else {}
    options |= {"beta": 0.0} if name == "grpo" else {}
    task, bundle = policy(name, sft, **options)
    batch, model = rollout(task, bundle), bundle.model.eval()
    loss = task.loss(task.forward(model, batch), batch)
    parts = {key: float(value) / loss.count for key, value in loss.parts.items()}
    assert parts["ratio"] == pytest.approx(1, abs=1e-5)
    assert parts["clip_fraction"] == 0
    assert parts["step_kl"] == pytest.approx(0, abs=1e-6)

    def ours() -> torch.Tensor:
        again = task.loss(task.forward(model, batch), batch)
        return again.sum / again.count

    def theirs() -> torch.Tensor:
        return surrogate(name, task, batch, task.forward(model, batch).log_probs)

    for one, other in zip(gradient(model, ours), gradient(model, theirs), strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_alone_or_in_a_batch(name: str, sft: Path) -> None:
    task, bundle = policy(name, sft)
    model = bundle.model.eval()
    made = task.experience(attempts(task, bundle))
    with torch.no_grad():
        for parameter in model.parameters():  # another policy than the one that wrote
            parameter.mul_(1.01)
        whole = made.batch(np.arange(len(made)))
        together = task.loss(task.forward(model, whole), whole)
        alone = [made.batch(np.array([i])) for i in range(len(made))]
        outputs = [task.forward(model, batch) for batch in alone]
        losses = [task.loss(own, batch) for own, batch in zip(outputs, alone, strict=True)]
        scored = task.forward(model, whole)
    # Every token has its log-probability and its value, to the last digits.
    for kind in ("log_probs", "values") if name == "ppo" else ("log_probs",):
        values = getattr(scored, kind).split(list(scored.select.layout.lengths))
        for number, part in zip(whole.index.tolist(), values, strict=True):
            own = getattr(outputs[number], kind)
            assert own.tolist() == pytest.approx(part.tolist(), rel=1e-6, abs=1e-7), kind
    # What is summed up has no more error than its terms: a sum of both signs may be near 0, and
    # terms are made of log-probabilities, which are not.
    assert together.count == sum(loss.count for loss in losses)
    for key in ("sum", *together.parts):
        terms = [float(loss.sum if key == "sum" else loss.parts[key]) for loss in losses]
        whole_sum = float(together.sum if key == "sum" else together.parts[key])
        size = max(sum(map(abs, terms)), float(together.count))
        assert whole_sum == pytest.approx(sum(terms), rel=0, abs=1e-6 * size), key


def test_a_value_is_the_same_number_whatever_stands_beside_it(sft: Path) -> None:
    """To the last bit, and the linear map that it is by its name."""
    _, bundle = policy("ppo", sft)
    model: Any = bundle.model
    hidden = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model.values(hidden)
        alone = torch.cat([model.values(hidden[i : i + 1]) for i in range(len(hidden))])
        assert torch.allclose(together, model.value(hidden)[:, 0], rtol=1e-4, atol=1e-6)
    assert torch.equal(together, alone)


def test_an_adapted_policy_is_the_merged_one(sft: Path) -> None:
    """Its scores and its gradients are those of the model that its matrices add up to."""
    task, bundle = policy("ppo", sft)
    base = copy.deepcopy(bundle.model).eval()
    add_lora(bundle.model, 2, 6.0, ["attention.qkv"])

    def below(batch: PackedBatch, **options: Any) -> Any:
        with without_adapters(bundle.model):
            return bundle.model(batch, **options)

    task.reference_model = below  # type: ignore[assignment]
    # B is 0: the reference is the model itself.
    for attempt in attempts(task, bundle):
        assert np.array_equal(attempt.old, attempt.reference)
    for part in adapters(bundle.model).values():
        torch.nn.init.normal_(part.lora_b, std=0.2)
    merged = copy.deepcopy(base)
    merged.load_state_dict(merged_state(bundle.model))
    # The reference is still the base, and the model is the merged one.
    batch = rollout(task, bundle)
    actions = batch.targets[NEXT] != IGNORED
    with torch.no_grad():
        expected = task.forward(base, batch).log_probs
        assert torch.equal(batch.targets[REFERENCE][actions], expected)
        assert not torch.allclose(batch.targets[OLD][actions], expected, atol=1e-2)
        other = task.forward(merged, batch)
        assert torch.allclose(batch.targets[OLD][actions], other.log_probs, atol=1e-6)
        assert torch.allclose(batch.targets[VALUE][actions], other.values, atol=1e-6)
    for model in (bundle.model, merged):
        task.loss(task.forward(model, batch), batch).sum.backward()
    # W = W0 + 3 B A, so the gradient of A is 3 B' times that of W, and of B that of W times 3 A'.
    whole = dict(merged.named_parameters())
    for name, part in adapters(bundle.model).items():
        own = whole[f"{name}.weight"].grad
        torch.testing.assert_close(part.lora_a.grad, 3 * part.lora_b.T @ own, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.lora_b.grad, 3 * own @ part.lora_a.T, rtol=1e-4, atol=1e-5)
    values = bundle.model.get_parameter("value.weight").grad
    assert values is not None
    assert bool(values.any())
    torch.testing.assert_close(values, whole["value.weight"].grad, rtol=1e-4, atol=1e-5)


def test_a_group_of_equal_rewards_gives_no_gradient(sft: Path) -> None:
    task, bundle = policy("grpo", sft, beta=0.0)
    task.rewarding = summed(lambda prompts, replies, rows: [0.1] * len(replies))
    batch = rollout(task, bundle)
    grads = gradient(bundle.model, lambda: task.loss(task.forward(bundle.model, batch), batch).sum)
    assert not any(bool(grad.any()) for grad in grads)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_what_the_losses_of_tokens_are_divided_by(loss: str, sft: Path) -> None:
    task, bundle = policy("grpo", sft, loss=loss, beta=0.3)
    batch, model = rollout(task, bundle), bundle.model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
        scores = task.forward(model, batch)
        own = task.loss(scores, batch)
    # By hand, token by token.
    sums, start = [], 0
    for labels, *columns in zip(
        *(
            batch.targets[n].split(list(batch.layout.lengths))
            for n in (NEXT, OLD, ADVANTAGE, REFERENCE)
        ),
        strict=True,
    ):
        old, advantage, reference = (c[labels != IGNORED].double() for c in columns)
        new = scores.log_probs[start : start + len(old)].double()
        start += len(old)
        ratio, away = (new - old).exp(), new - reference
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        sums.append(-surrogate + 0.3 * ((-away).exp() - 1 + away))
    expected = {
        "grpo": sum(float(s.mean()) for s in sums) / len(sums),
        "dapo": sum(float(s.sum()) for s in sums) / sum(map(len, sums)),
        "dr_grpo": sum(float(s.sum()) for s in sums) / len(sums) / 6,
    }[loss]
    assert float(own.sum) / own.count == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_the_figures_of_a_rollout(sft: Path) -> None:
    task, bundle = policy("ppo", sft, end_penalty=2.0)
    written = attempts(task, bundle)
    made = task.experience(written)
    batch = made.batch(np.array([3]))
    loss = task.loss(task.forward(bundle.model, batch), batch)
    parts = {key: float(value) / loss.count for key, value in loss.parts.items()}
    ratios = [a.old.astype(float) - a.reference for a in written]
    assert parts["kl"] == pytest.approx(np.mean([r.sum() for r in ratios]), rel=1e-4)
    assert parts["kl_k2"] == pytest.approx(np.mean([(r**2 / 2).sum() for r in ratios]), rel=1e-4)
    third = [(np.exp(-r) - 1 + r).sum() for r in ratios]
    assert parts["kl_k3"] == pytest.approx(np.mean(third), rel=1e-4)
    assert parts["reward"] == pytest.approx(np.mean([a.reward for a in written]), rel=1e-5)
    assert parts["reply_tokens"] == pytest.approx(np.mean([len(a.tokens) for a in written]))
    assert parts["share_without_end"] == np.mean([not a.ended for a in written])
    assert parts["beta"] == pytest.approx(0.05)
    assert parts["explained_variance"] <= 1


SUM = [{"length": 12, "weight": 2}, {"match": "e", "name": "vowel"}, {"match": "n"}]


def test_the_parts_of_a_reward(sft: Path) -> None:
    """Each by its name and without its weight, as the mean of the rollout; the end is none."""
    task, bundle = policy("grpo", sft, reward=SUM, end_penalty=2.0)
    texts: list[str] = []

    def seen(prompts: Any, replies: Any, rows: Any) -> list[float]:
        texts.extend(replies)
        return [0.0] * len(replies)

    reward = reward_function(SUM, device="cpu")
    task.rewarding = SummedReward([*reward.terms, RewardTerm("seen", "a function", seen)])
    written = attempts(task, bundle)
    batch = task.experience(written).batch(np.array([2]))
    parts = task.loss(task.forward(bundle.model, batch), batch).parts
    expected = {
        "reward_length": np.mean([-abs(len(text) - 12) / 12 for text in texts]),
        "reward_vowel": np.mean(["e" in text for text in texts]),
        "reward_match": np.mean(["n" in text for text in texts]),
    }
    ours = {name: float(value) for name, value in parts.items() if name.startswith("reward_")}
    assert ours == pytest.approx(expected, abs=1e-6)
    whole = 2 * expected["reward_length"] + expected["reward_vowel"] + expected["reward_match"]
    endless = np.mean([not attempt.ended for attempt in written])
    assert float(parts["reward"]) == pytest.approx(whole - 2 * endless, abs=1e-5)
    # Of one part the mean is the reward.
    task, bundle = policy("grpo", sft, reward=SUM[0])
    assert [name for name in task.metrics().result() if "reward_" in name] == ["reward_se"]


def test_a_rollout_from_before_there_were_parts(sft: Path) -> None:
    """A checkpoint holds it; its figures are those that it has."""
    task, bundle = policy("ppo", sft)
    held = task.experience(attempts(task, bundle))
    task, bundle = policy("ppo", sft, reward=SUM)
    batch = held.batch(np.arange(2))
    parts = task.loss(task.forward(bundle.model, batch), batch).parts
    assert "beta" in parts
    assert "reward_vowel" not in parts


@pytest.mark.parametrize(
    ("reward", "judge", "warned"),
    [
        (0.61, 0.5, True),  # 0.2 up, with a standard error of 0.1
        (0.61, 0.4, True),
        (0.61, 0.51, False),
        (0.59, 0.4, False),
        (0.2, 0.4, False),
        (math.nan, 0.4, False),
    ],
)
def test_a_reward_that_rises_alone(sft: Path, reward: float, judge: float, warned: bool) -> None:
    task, _ = policy("rloo", sft)
    before = {"reward": 0.4, "reward_se": 0.06, "judge": 0.5}
    now = {"reward": reward, "reward_se": 0.08, "judge": judge}
    text = task.warning(before, now)
    assert (text is not None) == warned
    assert text is None or f"from 0.4 to 0.61, but the judge went from 0.5 to {judge}" in text
    del before["judge"]
    assert task.warning(before, now) is None


def test_a_reply_without_an_end_is_worth_less(sft: Path) -> None:
    task, bundle = policy("grpo", sft)
    plain = attempts(task, bundle)
    task, bundle = policy("grpo", sft, end_penalty=5.0)
    for before, after in zip(plain, attempts(task, bundle), strict=True):
        assert after.reward == pytest.approx(before.reward - 5 * (not before.ended))
    assert not all(attempt.ended for attempt in plain)


def test_beta_follows_the_kl(sft: Path) -> None:
    task, bundle = policy("ppo", sft, target_kl=1e-3, kl_horizon=100)
    written = attempts(task, bundle)
    kl = float(np.mean([attempt.kl for attempt in written]))
    task.experience(written)
    error = min(max(kl / 1e-3 - 1, -0.2), 0.2)
    assert task.beta == pytest.approx(0.05 * (1 + error * len(written) / 100))


def test_an_attempt_knows_its_kl() -> None:
    old, reference = np.float32([-1, -2]), np.float32([-1.5, -1])
    attempt = Attempt((1,), (2, 3), 0, 0.0, True, old, reference, old)
    assert attempt.kl == -0.5


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("ppo", {"top_k": 3}, "must stay off"),
        ("ppo", {"top_p": 0.9}, "must stay off"),
        ("grpo", {"repetition_penalty": 1.2}, "must stay off"),
        ("rloo", {"label_smoothing": 0.1}, "belong to the cross-entropy"),
        ("grpo", {"temperature": 0}, "greater than 0"),
        ("grpo", {"group": 1}, "greater than or equal to 2"),
        ("rloo", {"reference": None}, "beta needs a reference"),
        ("rloo", {"passes": 2}, "set loss to clipped"),
        (
            "ppo",
            {"max_new_tokens": 512, "max_length": 500},
            "=512 leaves no room .*=500: set task.m",
        ),
        ("grpo", {"reward": [{"length": 3, "name": "se"}, {"match": "a"}]}, "hide the figure"),
        ("ppo", {"reward": [{"run": "runs/se/best"}, {"match": "a"}]}, "hide the figure"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TASKS[name][1](**options)
