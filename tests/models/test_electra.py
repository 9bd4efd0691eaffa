from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pretune.bundle.bundle import load
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.electra import ElectraConfig, ElectraModel
from pretune.models.families import FAMILIES, build_head
from pretune.tasks.replaced_token.detect import DetectReplaced
from tests.models.encoders import saved

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "embedding_size": 6,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
}


@pytest.mark.parametrize("entry", [{"is_decoder": True}, {"position_embedding_type": "relative"}])
def test_what_was_never_published_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(entry))):
        ElectraConfig.from_dict({**SMALL, **entry})


@pytest.mark.parametrize(
    ("own", "given", "rate"), [(None, None, 0.3), (0.2, None, 0.2), (0.2, 0.5, 0.5)]
)
@pytest.mark.parametrize("head", ["sequence_classification", "token_classification"])
def test_dropout_of_a_head(head: str, own: float | None, given: float | None, rate: float) -> None:
    config = ElectraConfig(**SMALL, hidden_dropout_prob=0.3, classifier_dropout=own)
    assert build_head(ElectraModel(config), head, 2, dropout=given).dropout.p == rate


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = build_head(ElectraModel(ElectraConfig(**SMALL)), "sequence_classification", 3)
    model(PackedBatch.of([[1, 2, 3], [4, 5]])).logsumexp(1).sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_without_a_projection_where_the_sizes_are_equal() -> None:
    model = ElectraModel(ElectraConfig(**{**SMALL, "embedding_size": 8}))
    assert not any("project" in name for name, _ in model.named_parameters())


def test_a_published_discriminator_loads_without_its_pre_training_head(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(**SMALL)
    theirs = transformers.ElectraForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, report = load_into(
        lambda: ElectraModel(ElectraConfig(**SMALL)),
        open_weights(tmp_path),
        tmp_path,
        FAMILIES["electra"],
        "backbone",
    )
    assert report.missing == ()
    assert {name.partition(".")[0] for name in report.unexpected} == {"discriminator_predictions"}
    with torch.no_grad():
        expected = theirs.electra(torch.tensor([[3, 1, 4, 1, 5]])).last_hidden_state[0]
        found = ours.eval()(PackedBatch.of([[3, 1, 4, 1, 5]])).last_hidden_state
    assert (found - expected).abs().max() < 1e-5


def test_a_published_discriminator_tells_replaced_tokens(tmp_path: Path) -> None:
    saved(tmp_path, "ElectraForPreTraining", embedding_size=6)
    bundle = load(tmp_path)
    assert isinstance(bundle.task, DetectReplaced)
    assert bundle.report is not None
    assert bundle.report.missing == bundle.report.unexpected == ()


def test_a_choice_is_read_as_published() -> None:
    model = ElectraModel(ElectraConfig(**SMALL, summary_type="mean"))
    with pytest.raises(CheckpointError, match="summary_type is not 'first'"):
        build_head(model, "multiple_choice")
