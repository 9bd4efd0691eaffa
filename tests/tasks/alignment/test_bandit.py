"""Where a reply is one token of eight, the best policy is known: it must be reached.

Of E[r] - beta KL(pi || reference) the maximum is pi = reference exp(r / beta) / Z (Rafailov et al.
2023, equation 4). `grpo` has another: see `best`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from pretune.bundle.bundle import Bundle, load
from pretune.tokenizers.tokenizer import Tokenizer
from tests.tasks.alignment.policies import TASKS, prompts, summed, trainer

ARMS = ["<end>", "a", "b", "c", "d", "e", "f", "g"]
REWARD = {arm: (i * 5 % 8) / 4 - 1 for i, arm in enumerate(ARMS)} | {"": 0.25}
BETA = 0.5


def reward(
    prompts: Sequence[str], replies: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> list[float]:
    return [REWARD[reply] for reply in replies]


def words() -> Tokenizer:
    vocabulary = {arm: i for i, arm in enumerate(ARMS)}
    engine = RustTokenizer(models.WordLevel(vocabulary, unk_token="a"))  # noqa: S106
    template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return Tokenizer(engine, {"eos_token": "<end>"}, {"chat_template": template})


def chances(bundle: Bundle, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits, _ = bundle.model.eval().start([list(ids)])  # type: ignore[operator]
    policy: np.ndarray[Any, Any] = logits[0].double().softmax(-1).numpy()
    return policy


def best(name: str, start: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The policy at which the expected gradient is 0."""
    rewards = np.array([REWARD[arm if i else ""] for i, arm in enumerate(ARMS)])
    if name != "grpo":
        tilted: np.ndarray[Any, Any] = start * np.exp(rewards / BETA)
        return tilted / tilted.sum()
    # The gradient of k3 at draws of pi is that of KL(reference || pi): pi (top - r) = beta
    # reference, and the multiplier `top` makes the sum 1.
    low, high = rewards.max(), rewards.max() + BETA
    for _ in range(60):
        top = (low + high) / 2
        low, high = (top, high) if (BETA * start / (top - rewards)).sum() > 1 else (low, top)
    policy: np.ndarray[Any, Any] = BETA * start / (top - rewards)
    return policy


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ppo", {"group": 64, "whiten": False, "passes": 4, "value_weight": 1.0, "clip_value": 9}),
        ("rloo", {"group": 64}),
        ("grpo", {"group": 64, "scale": "none", "passes": 2}),
    ],
)
def test_the_best_policy_is_reached(name: str, options: dict[str, Any]) -> None:
    kind, options_type = TASKS[name]
    usual = {"beta": BETA, "rollout": 1, "max_new_tokens": 1, "max_length": 8}
    task = kind(options_type(**usual, **options))
    torch.manual_seed(1)
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 8}
    bundle, reference = (
        load("gpt2-small", task=task, tokenizer=words(), config=sizes, dropout=0.0)
        for _ in range(2)
    )
    torch.nn.init.normal_(bundle.backbone.embeddings.tokens.weight, std=0.15)
    reference.model.load_state_dict(bundle.model.state_dict())
    task.reference_model, task.rewarding = reference.model.eval(), summed(reward)
    made = prompts(task, bundle, [{"prompt": "a"}])
    ids = made.tokens.tolist()
    start = chances(bundle, ids)
    expected = best(name, start)
    assert np.abs(start - expected).sum() / 2 > 0.15

    ours = trainer(
        task,
        bundle,
        made,
        epochs=40,
        batch_size=64,
        learning_rate=5e-3,
        clip=None,
        schedule="linear",
    )
    ours.fit()
    assert np.abs(chances(bundle, ids) - expected).sum() / 2 < 0.02
