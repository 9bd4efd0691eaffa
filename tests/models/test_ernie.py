"""ERNIE: what its configuration says of tasks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.ernie import ErnieConfig, ErnieModel
from tests.models.encoders import SIZES


@pytest.mark.parametrize("entries", [{"use_task_id": 1}, {"task_type_vocab_size": 0}])
def test_entries_that_make_no_sense(entries: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(entries))):
        ErnieConfig.from_dict({**SIZES, **entries})


@torch.no_grad()
def test_the_first_task_is_added_where_there_are_tasks() -> None:
    model = ErnieModel(ErnieConfig(**SIZES, vocab_size=20, use_task_id=True)).eval()
    tasks, batch = model.embeddings.tasks, PackedBatch.of([[5, 6]])
    assert tasks is not None
    before = model.embeddings.summed(batch)
    tasks.weight[0] += 1
    torch.testing.assert_close(model.embeddings.summed(batch), before + 1)
    assert ErnieModel(ErnieConfig(**SIZES)).embeddings.tasks is None
