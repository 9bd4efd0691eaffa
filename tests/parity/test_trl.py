"""Losses of preferences beside TRL's: padded there, packed here, both models in float64.

Some numbers are float32 all the same. TRL's: log-probabilities of `DPOTrainer` and `KTOTrainer`
(its chunked kernel), and those in ORPO's odds. Ours: log-probabilities of tokens, the scores of the
reference, and the scores of replies in the loss of `reward`. Losses and gradients agree to 1e-6
nevertheless.

Of our losses only `ipo_sum` has no counterpart there: its IPO is always a token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from pretune.bundle.bundle import load, save
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.inference.reference import reference_scores, with_scores
from pretune.tasks.alignment.dpo import WANTED, Dpo, DpoOptions
from pretune.tasks.alignment.reward import MARGIN, Reward, RewardOptions
from pretune.tasks.features import record_features
from pretune.tasks.losses import IGNORED, NEXT
from tests.tasks.alignment.preferences import ROWS, answering, records, saved

pytestmark = pytest.mark.slow

TOLERANCE = 1e-6
KTO_ROWS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in ROWS
    for side in ("chosen", "rejected")
]


def padded(batch: PackedBatch, pad: int = 0) -> dict[str, torch.Tensor]:
    """Pairs as TRL wants them: all chosen replies, then all rejected ones, padded on the right."""
    rows: list[tuple[list[int], list[int]]] = []
    lengths = list(batch.layout.lengths)
    labels = torch.split(batch.targets[NEXT], lengths)
    for ids, own in zip(torch.split(batch.tokens, lengths), labels, strict=True):
        # The last token is only predicted here.
        rows.append(([*ids.tolist(), int(own[-1])], [0, *(own != IGNORED).int().tolist()]))
    rows = [*rows[0::2], *rows[1::2]]
    size = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (size - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (size - len(ids)) for ids, _ in rows]
        ),
        "completion_mask": torch.tensor([mask + [0] * (size - len(mask)) for _, mask in rows]),
    }


def halves(batch: PackedBatch) -> dict[str, torch.Tensor]:
    """Pairs as the trainers of `trl.experimental` want them: the sides apart, with labels."""
    whole = padded(batch)
    whole["labels"] = whole["input_ids"].masked_fill(whole.pop("completion_mask") == 0, IGNORED)
    return {
        f"{side}_{name}": half
        for name, values in whole.items()
        for side, half in zip(("chosen", "rejected"), values.chunk(2), strict=True)
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("trl")
    return saved(place / "policy"), saved(place / "reference", seed=1)


def their_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()


def their_trainer(
    kind: Any, config: Any, folder: Path, models: list[Any], rows: Any = ROWS, **own: Any
) -> Any:
    """One of TRL's trainers, of float64 models in evaluation mode."""
    import datasets

    arguments = config(
        output_dir=str(folder / "run"),
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_dropout=True,
        gradient_checkpointing=False,
        max_length=96,
        **own,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    data = datasets.Dataset.from_list(json.loads(json.dumps(rows)))
    trainer = kind(*models, args=arguments, train_dataset=data, processing_class=tokenizer)
    for model in models:
        assert model.dtype == torch.float64
        model.eval()
    return trainer


def prepared(seeds: tuple[int, int] = (0, 1), **options: Any) -> tuple[Dpo, nn.Module, FeatureSet]:
    """Our task, our model in float64, and features with the scores of a reference."""
    task = Dpo(DpoOptions(max_length=96, beta=0.2, **options))
    task.bind(answering().tokenizer)
    made = record_features(task, records(task), answering().tokenizer)
    model, reference = (copy.deepcopy(answering(seed).model).double().eval() for seed in seeds)
    model.zero_grad()
    scores = reference_scores(task, reference, made, device=torch.device("cpu"))
    return task, model, with_scores(made, scores)


def whole(made: FeatureSet) -> PackedBatch:
    return made.batch(np.arange(len(made)))


def each_pair(made: FeatureSet, loss: Callable[[PackedBatch], torch.Tensor]) -> torch.Tensor:
    """The mean of TRL's losses on one pair at a time.

    Its cross-entropy is a mean over the tokens of a batch, where ours is a mean over pairs of means
    over their tokens, as the papers write it. Of one pair both are the same.
    """
    pairs = [made.batch(np.array([i])) for i in range(len(made))]
    return torch.stack([loss(pair) for pair in pairs]).mean()


def check(
    task: Any, model: nn.Module, batch: PackedBatch, theirs: Any, value: torch.Tensor
) -> None:
    """Compare the loss, the gradient of the embeddings, and the norm of the whole gradient."""
    ours = task.loss(task.forward(model, batch), batch)
    (ours.sum / ours.count).backward()
    value.backward()
    assert float(ours.sum) / ours.count == pytest.approx(float(value), rel=TOLERANCE)
    gradient = model.get_submodule("backbone").get_parameter("embeddings.tokens.weight").grad
    expected = theirs.transformer.wte.weight.grad
    assert gradient is not None
    assert torch.allclose(gradient, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
    norms = [
        sum(float(p.grad.square().sum()) for p in side.parameters() if p.grad is not None) ** 0.5
        for side in (model, theirs)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=TOLERANCE)


def compare_rewards(
    task: Dpo, model: nn.Module, batch: PackedBatch, trainer: Any, *, alone: bool = False
) -> None:
    """Compare means over a batch with what TRL's loop last reported.

    A reward is the difference of two log-probabilities, both float32, so the tolerance is relative
    to the largest reward of the batch; of a pair `alone` to the log-probabilities times beta, as
    the last bit of one can be more than 1e-6 of their difference.
    """
    outputs = task.forward(model, batch)
    metrics = task.metrics()
    metrics.update(outputs, batch)
    ours, theirs = metrics.result(), trainer._metrics["eval"]
    rewards, log_probs = task.measured(outputs, batch).abs().view(-1, 2).amax(0).tolist()
    within = TOLERANCE * (task.options.beta * log_probs if alone else rewards)
    for side in ("chosen", "rejected"):
        expected = pytest.approx(theirs[f"rewards/{side}"][-1], rel=0, abs=within)
        assert ours[f"{side}_reward"] == expected
        expected = pytest.approx(theirs[f"logps/{side}"][-1], rel=TOLERANCE)
        assert ours[f"{side}_log_prob"] == expected
    expected = pytest.approx(theirs["rewards/margins"][-1], rel=0, abs=2 * within)
    assert ours["reward_margin"] == expected
    if not task.unpaired:  # of which TRL reports no accuracy
        assert ours["reward_accuracy"] == pytest.approx(theirs["rewards/accuracies"][-1])


@pytest.mark.parametrize("loss", ["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero"])
def test_losses_with_a_reference_and_implicit_rewards(
    folders: tuple[Path, Path], loss: Any
) -> None:
    import trl

    share = 0.1 if loss == "robust" else 0.0  # their sigmoid has no label smoothing
    task, model, made = prepared(loss=loss, label_smoothing=share)
    own = {"loss_type": [loss], "beta": 0.2, "label_smoothing": share}
    models = [their_model(folder) for folder in folders]
    trainer = their_trainer(trl.DPOTrainer, trl.DPOConfig, folders[0], models, **own)
    batch = whole(made)
    value = trainer._compute_loss(models[0], padded(batch), return_outputs=False)
    check(task, model, batch, models[0], value)
    compare_rewards(task, model, batch, trainer)
    # The means over pairs, and each pair's own.
    for i in range(len(made)):
        pair = made.batch(np.array([i]))
        trainer._compute_loss(models[0], padded(pair), return_outputs=False)
        compare_rewards(task, model, pair, trainer, alone=True)


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"loss": "sft"}, {"loss_type": ["sft"]}),
        (
            {"loss": "sigmoid", "sft_weight": 0.7},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
        ),
    ],
    ids=["sft", "sft_weight"],
)
def test_the_cross_entropy_of_chosen_replies(
    folders: tuple[Path, Path], options: dict[str, Any], own: dict[str, Any]
) -> None:
    import trl

    task, model, made = prepared(**options)
    models = [their_model(folder) for folder in folders]
    trainer = their_trainer(trl.DPOTrainer, trl.DPOConfig, folders[0], models, beta=0.2, **own)
    value = each_pair(
        made, lambda pair: trainer._compute_loss(models[0], padded(pair), return_outputs=False)
    )
    check(task, model, whole(made), models[0], value)


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("loss", ["cpo", "simpo"])
def test_cpo_and_simpo(folders: tuple[Path, Path], loss: Any, share: float) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    given: dict[str, Any] = {"label_smoothing": share}
    own: dict[str, Any] = {"beta": 0.2, "label_smoothing": share, "loss_type": "sigmoid"}
    if loss == "simpo":
        # They take gamma / beta off inside the brackets of beta, which is gamma outside of them.
        # SimPO as in its paper is without the cross-entropy that they add by default.
        given["gamma"] = 0.3
        own |= {"loss_type": "simpo", "simpo_gamma": 0.3, "cpo_alpha": 0.0}
    task, model, made = prepared(loss=loss, **given)
    theirs = their_model(folders[0])
    trainer = their_trainer(CPOTrainer, CPOConfig, folders[0], [theirs], **own)

    def of_batch(batch: PackedBatch) -> torch.Tensor:
        loss_, _ = trainer.get_batch_loss_metrics(theirs, halves(batch))
        return torch.as_tensor(loss_)

    value = of_batch(whole(made)) if loss == "simpo" else each_pair(made, of_batch)
    check(task, model, whole(made), theirs, value)


def test_orpo(folders: tuple[Path, Path]) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    task, model, made = prepared(loss="orpo")
    theirs = their_model(folders[0])
    trainer = their_trainer(ORPOTrainer, ORPOConfig, folders[0], [theirs], beta=0.2)
    # Their cross-entropy is also over the prompt. Ours is over the reply, as the paper's P(y|x):
    # it is taken from their log-probabilities a token.
    chosen, rejected, *_ = trainer.concatenated_forward(theirs, halves(whole(made)))
    odds, *_ = trainer.odds_ratio_loss(chosen, rejected)
    check(task, model, whole(made), theirs, (-chosen - odds).mean())


@pytest.mark.parametrize("swapped", [False, True])
def test_kto(folders: tuple[Path, Path], swapped: bool) -> None:
    import trl

    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    order = (1, 0) if swapped else (0, 1)
    task, model, made = prepared(order, loss="kto", **weights)
    models = [their_model(folders[i]) for i in order]
    trainer = their_trainer(
        trl.KTOTrainer, trl.KTOConfig, folders[0], models, KTO_ROWS, beta=0.2, **weights
    )
    batch = whole(made)
    sides = {name: values.chunk(2) for name, values in padded(batch).items()}
    # Their baseline is made of replies of the same batch, moved on by one; ours of the next other
    # reply of the data. Theirs gets our pairing, and makes its own baseline from it.
    inputs = {name: own for name, (own, _) in sides.items()}
    inputs |= {f"KL_{name}": other for name, (_, other) in sides.items()}
    inputs["label"] = batch.targets[WANTED]
    value = trainer._compute_loss(models[0], inputs, return_outputs=False)
    # The baseline counts in one direction; in the other it is negative, and both make it 0.
    baseline = trainer._metrics["eval"]["kl"][-1]
    assert (baseline > 0.1) is swapped
    check(task, model, batch, models[0], value)
    compare_rewards(task, model, batch, trainer)


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_reward_models(folders: tuple[Path, Path], tmp_path: Path, center: float) -> None:
    import trl

    task = Reward(RewardOptions(max_length=96, center=center))
    bundle = load(folders[0], task=task)
    for name, parameter in bundle.model.named_parameters():
        if not name.startswith("backbone"):
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path / "reward"
    folder.mkdir()
    save(bundle, folder)
    rows = [{**row, MARGIN: i / 4} for i, row in enumerate(ROWS)]
    batch = whole(record_features(task, records(task, rows), bundle.tokenizer))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).double()
    trainer = their_trainer(
        trl.RewardTrainer,
        trl.RewardConfig,
        folder,
        [theirs],
        center_rewards_coefficient=center or None,
    )
    sequences = list(torch.split(batch.tokens, list(batch.layout.lengths)))
    ids = nn.utils.rnn.pad_sequence([*sequences[0::2], *sequences[1::2]], batch_first=True)
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    value = trainer.compute_loss(theirs, {**inputs, "margin": batch.targets[MARGIN]})
    check(task, bundle.model.double().eval(), batch, theirs, value)
