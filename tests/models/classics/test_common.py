"""What the window model and the recurrent models have in common: states, steps, recomputing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from pretune.data.batch import PackedBatch
from pretune.models.classics.common import MutableState
from tests.models.classics.helpers import SEQUENCES, build_nnlm, build_rnn, close, logits_of

#: Of one kind each, without dropout.
EACH = pytest.mark.parametrize(
    "build", [partial(build_nnlm, dropout=0.0), partial(build_rnn, "lstm")], ids=["nnlm", "lstm"]
)


@EACH
def test_a_step_from_nothing_is_the_first_token(build):
    model = build().eval()
    logits = model.step(torch.tensor([3, 7]), MutableState(model.initial(2)))
    close(logits, model(PackedBatch.of([[3], [7]])))


@EACH
def test_sequences_may_join_and_fork_on_the_way(build):
    model = build().eval()
    expected = logits_of(model, SEQUENCES)
    _, some = model.start([SEQUENCES[0][:3]])
    _, others = model.start([SEQUENCES[3][:5], SEQUENCES[2][:1]])
    some.extend(others)
    some.select([2, 0, 0, 1])
    tokens = [SEQUENCES[2][1], SEQUENCES[0][3], SEQUENCES[0][3], SEQUENCES[3][5]]
    found = model.step(torch.tensor(tokens), some)
    close(found, torch.stack([expected[2][1], expected[0][3], expected[0][3], expected[3][5]]))


@EACH
def test_recomputing_gives_the_same_gradients(build):
    model, batch = build(), PackedBatch.of(SEQUENCES)

    def gradients(recompute: bool) -> list[Tensor]:
        model.backbone.recompute = recompute
        model.zero_grad()
        model(batch).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        close(found, expected)
