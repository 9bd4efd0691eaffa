"""The window model against equation 1 of Bengio et al. 2003, written out token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.classics.common import ClassicLM
from pretune.models.classics.nnlm import NnlmConfig, NnlmModel, windows
from tests.models.classics.helpers import (
    NNLM,
    SEQUENCES,
    build_nnlm,
    close,
    learn,
    logits_of,
    pieces,
)

BOTH = pytest.mark.parametrize("direct", [True, False])


def equation_1(model: ClassicLM, ids: list[int]) -> Tensor:
    """Equation 1, y = b + W x + U tanh(d + H x) after each token of one sequence."""
    backbone, config = model.backbone, model.backbone.config
    (layer,) = backbone.layers
    table, start = backbone.embeddings.tokens.weight, backbone.embeddings.start.weight[0]
    rows = []
    for t in range(len(ids)):
        context = [table[ids[i]] if i >= 0 else start for i in range(t - config.order + 2, t + 1)]
        x = torch.cat(context)
        a = torch.tanh(layer.hidden.bias + layer.hidden.weight @ x)
        y = model.bias + model.output.weight[:, : config.hidden_size] @ a
        if config.direct_connections:
            y = y + model.output.weight[:, config.hidden_size :] @ x
        rows.append(y)
    return torch.stack(rows)


@BOTH
@pytest.mark.parametrize("order", [2, 4, 20])
def test_values_and_gradients_are_those_of_the_equation(direct, order):
    model = build_nnlm(direct, order=order)
    expected = torch.cat([equation_1(model, ids) for ids in SEQUENCES])
    weights = torch.randn(expected.shape, dtype=torch.float64)
    (expected * weights).sum().backward()
    # A window of one token never begins before the text.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    model.zero_grad()
    found = model(PackedBatch.of(SEQUENCES))
    close(found, expected)
    (found * weights).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        close(parameter.grad, gradient)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(2, 6), st.randoms())
def test_a_window_ends_with_its_token_and_never_leaves_its_sequence(lengths, order, random):
    model = NnlmModel(replace(NNLM, order=order))
    ids = [[random.randrange(11) for _ in range(n)] for n in lengths]
    found = windows(PackedBatch.of(ids), model.initial(len(ids))).tolist()
    expected = []
    for one in ids:
        padded = [-1] * (order - 2) + one
        expected += [padded[t : t + order - 1] for t in range(len(one))]
    assert found == expected


@BOTH
def test_a_state_carries_over_from_piece_to_piece(direct):
    model = build_nnlm(direct)
    # Cuts before, at and behind the width of the window.
    batch, first, second = pieces([5, 3, 9, 4], [2, 1, 4, 3])
    whole, at_end = model.carry(batch, None)
    one, state = model.carry(first, None)
    two, state = model.carry(second, state)
    for i, expected in enumerate(torch.split(whole, batch.layout.lengths)):
        parts = (torch.split(x, b.layout.lengths)[i] for x, b in ((one, first), (two, second)))
        close(torch.cat(list(parts)), expected)
    assert torch.equal(state.window, at_end.window)
    assert state.detach() is state


def test_steps_are_the_forward_pass():
    model = build_nnlm()
    expected = logits_of(model, SEQUENCES)
    logits, state = model.start([ids[:1] for ids in SEQUENCES])
    alive = list(range(len(SEQUENCES)))
    for at in range(10):
        for row, i in enumerate(alive):
            close(logits[row], expected[i][at])
        left = [row for row, i in enumerate(alive) if len(SEQUENCES[i]) > at + 1][::-1]
        if not left:
            break
        state.select(left)
        alive = [alive[row] for row in left]
        assert state.state.count == len(alive)
        logits = model.step(torch.tensor([SEQUENCES[i][at + 1] for i in alive]), state)
    assert at == 9


def test_selected_rows_and_hidden_states():
    model, batch = build_nnlm(), PackedBatch.of(SEQUENCES)
    close(model(batch, select=batch.last), model(batch)[batch.last.rows])
    output = model.backbone(batch, output_hidden_states=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(26, 9), (26, 15)]
    close(output.hidden_states[0], model.backbone.embeddings(batch))
    # With direct connections the output layer reads the window's embeddings too.
    close(output.last_hidden_state[:, 6:], output.hidden_states[0])
    with pytest.raises(CheckpointError, match="no attention"):
        model.backbone(batch, output_attentions=True)


def test_many_rows_in_float32(matmul):
    # Large enough that rows are rounded up for the kernel.
    model = build_nnlm().float()
    ids = [list(range(11)) * 30]
    expected = equation_1(model, ids[0])
    torch.testing.assert_close(model(PackedBatch.of(ids)), expected, rtol=0, atol=1e-4)


def test_dropout_is_on_what_the_output_layer_reads():
    model = build_nnlm(dropout=0.5).backbone
    read = model(PackedBatch.of([[1, 2, 3, 4] * 500])).last_hidden_state
    assert 0.45 < (read == 0).double().mean() < 0.55


@BOTH
@pytest.mark.parametrize(("v", "m", "h", "n"), [(10, 4, 3, 2), (500, 30, 100, 5)])
def test_parameters_by_the_closed_form_of_the_paper(direct, v, m, h, n):
    config = NnlmConfig(
        vocab_size=v, embedding_size=m, hidden_size=h, order=n, direct_connections=direct
    )
    # Section 2: |V| (1 + n m + h) + h (1 + (n - 1) m); ours has the vector of the beginning too.
    paper = v * (1 + n * m + h) + h * (1 + (n - 1) * m)
    expected = paper + m - (0 if direct else v * (n - 1) * m)
    assert sum(p.numel() for p in ClassicLM(NnlmModel(config)).parameters()) == expected


def test_fresh_weights():
    torch.manual_seed(0)
    model = ClassicLM(NnlmModel(NnlmConfig(vocab_size=500)))
    (layer,) = model.backbone.layers
    assert layer.hidden.weight.abs().max() <= 120**-0.5
    assert layer.hidden.weight.std().item() == pytest.approx((3 * 120) ** -0.5, rel=0.05)
    for table in (model.output.weight, model.backbone.embeddings.tokens.weight):
        assert table.std().item() == pytest.approx(0.1, rel=0.05)
    assert not any(bias.any() for bias in (model.bias, layer.hidden.bias))


@BOTH
def test_learns_what_needs_two_tokens_of_context(direct):
    torch.manual_seed(0)
    config = NnlmConfig(
        vocab_size=8, order=3, embedding_size=8, hidden_size=32, direct_connections=direct
    )
    loss, unigram = learn(ClassicLM(NnlmModel(config)))
    assert loss < 0.8 * unigram
