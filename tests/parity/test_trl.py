"""Losses of preferences beside TRL's: padded there, packed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pretune.data.batch import PackedBatch
from pretune.inference.reference import reference_scores, with_scores
from pretune.tasks.alignment.dpo import Dpo, DpoOptions
from pretune.tasks.features import record_features
from pretune.tasks.losses import IGNORED, NEXT
from tests.tasks.alignment.preferences import ROWS, answering, records, saved

pytestmark = pytest.mark.slow

TRL_LOSSES = ["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero"]


def padded(batch: PackedBatch, pad: int) -> dict[str, torch.Tensor]:
    """Pairs as TRL wants them: all chosen replies, then all rejected ones, padded on the right."""
    rows: list[tuple[list[int], list[int]]] = []
    labels = torch.split(batch.targets[NEXT], list(batch.layout.lengths))
    for ids, own in zip(torch.split(batch.tokens, list(batch.layout.lengths)), labels, strict=True):
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("trl")
    return saved(place / "policy"), saved(place / "reference", seed=1)


@pytest.mark.parametrize("loss", TRL_LOSSES)
def test_losses_and_gradients_are_those_of_trl(
    folders: tuple[Path, Path], loss: Any, tmp_path: Path
) -> None:
    import datasets
    import trl

    theirs, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in folders
    )
    share = 0.1 if loss == "robust" else 0.0  # their sigmoid has no label smoothing
    task = Dpo(DpoOptions(max_length=96, loss=loss, beta=0.2, label_smoothing=share))
    task.bind(answering().tokenizer)
    made = record_features(task, records(task), answering().tokenizer)
    scores = reference_scores(task, answering(1).model, made, device=torch.device("cpu"))
    batch = with_scores(made, scores).batch(np.arange(len(made)))
    # Ours, packed.
    model = answering().model.eval()
    model.zero_grad()
    ours = task.loss(task.forward(model, batch), batch)
    (ours.sum / ours.count).backward()
    # TRL's, on its own model and with its own loop's function.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path),
        loss_type=[loss],
        beta=0.2,
        label_smoothing=share,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_dropout=True,
        gradient_checkpointing=False,
    )
    data = datasets.Dataset.from_list(json.loads(json.dumps(ROWS)))
    trainer = trl.DPOTrainer(
        theirs, reference, args=arguments, train_dataset=data, processing_class=tokenizer
    )
    theirs.eval()
    reference.eval()
    value = trainer._compute_loss(theirs, padded(batch, 0), return_outputs=False)
    value.backward()
    assert float(ours.sum) / ours.count == pytest.approx(float(value), rel=1e-5)
    gradient = model.get_submodule("backbone").get_parameter("embeddings.tokens.weight").grad
    expected = theirs.transformer.wte.weight.grad
    assert gradient is not None
    assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))
