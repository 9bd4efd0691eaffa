"""The recurrent models against torch's own layers, one sequence at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pretune.data.batch import Layout, PackedBatch
from pretune.errors import CheckpointError
from pretune.models.classics.common import ClassicLM
from pretune.models.classics.rnn import GATES, RnnConfig, RnnModel, TimeMajor
from tests.models.classics.helpers import SEQUENCES, build_rnn, close, learn, logits_of, pieces

THEIRS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELLS = list(GATES)


def theirs_of(model: RnnModel) -> nn.RNNBase:
    """PyTorch's layers with copies of the same weights."""
    config = model.config
    theirs = THEIRS[config.cell](
        config.embedding_size, config.hidden_size, config.num_hidden_layers, batch_first=True
    ).double()
    for i, layer in enumerate(model.layers):
        for name, part in (("ih", layer.input), ("hh", layer.recurrent)):
            theirs.get_parameter(f"weight_{name}_l{i}").data.copy_(part.weight.data)
            theirs.get_parameter(f"bias_{name}_l{i}").data.copy_(part.bias.data)
    return theirs


@pytest.mark.parametrize("cell", CELLS)
def test_values_and_gradients_are_those_of_torch_sequence_by_sequence(cell):
    model = build_rnn(cell).backbone
    theirs, table = theirs_of(model), model.embeddings.tokens.weight.detach().clone()
    table.requires_grad_()
    output = model(PackedBatch.of(SEQUENCES))
    weights = torch.randn(len(output.last_hidden_state), 6, dtype=torch.float64)
    (output.last_hidden_state * weights).sum().backward()
    expected, last = [], []
    for ids in SEQUENCES:
        every, state = theirs(table[torch.tensor([ids])])
        expected.append(every[0])
        last.append(state if cell == "lstm" else (state,))
    close(output.last_hidden_state, torch.cat(expected))
    close(output.state.hidden, torch.stack([state[0][:, 0] for state in last], 1))
    if cell == "lstm":
        close(output.state.cell, torch.stack([state[1][:, 0] for state in last], 1))
    (torch.cat(expected) * weights).sum().backward()
    close(model.embeddings.tokens.weight.grad, table.grad)
    for i, layer in enumerate(model.layers):
        for name, part in (("ih", layer.input), ("hh", layer.recurrent)):
            close(part.weight.grad, theirs.get_parameter(f"weight_{name}_l{i}").grad)
            close(part.bias.grad, theirs.get_parameter(f"bias_{name}_l{i}").grad)


@pytest.mark.parametrize("cell", CELLS)
def test_one_padded_batch_of_torch_gives_the_same(cell):
    model = build_rnn(cell).backbone
    theirs = theirs_of(model)
    ids = nn.utils.rnn.pad_sequence([torch.tensor(s) for s in SEQUENCES], batch_first=True)
    every, _ = theirs(model.embeddings.tokens(ids))
    expected = [rows[: len(s)] for rows, s in zip(every, SEQUENCES, strict=True)]
    close(model(PackedBatch.of(SEQUENCES)).last_hidden_state, torch.cat(expected))


@pytest.mark.parametrize("cell", CELLS)
def test_a_state_carries_over_from_piece_to_piece(cell):
    model = build_rnn(cell)
    batch, first, second = pieces([5, 3, 9, 4], [2, 1, 4, 3])
    whole, at_end = model.carry(batch, None)
    one, state = model.carry(first, None)
    two, state = model.carry(second, state.detach())
    for i, expected in enumerate(torch.split(whole, batch.layout.lengths)):
        parts = (torch.split(x, b.layout.lengths)[i] for x, b in ((one, first), (two, second)))
        close(torch.cat(list(parts)), expected)
    close(state.hidden, at_end.hidden)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_flow_through_a_state_unless_it_is_detached(cell):
    model = build_rnn(cell)
    batch, first, second = pieces([5, 3, 9, 4], [2, 1, 4, 3])

    def gradients(*, through: bool) -> Tensor:
        model.zero_grad()
        _, state = model.carry(first, None)
        logits, _ = model.carry(second, state if through else state.detach())
        logits.sum().backward()
        return model.backbone.embeddings.tokens.weight.grad.clone()

    model.zero_grad()
    rows = batch.positions >= torch.tensor([2, 1, 4, 3]).repeat_interleave(
        torch.tensor(batch.layout.lengths)
    )
    model(batch)[rows].sum().backward()
    exact = model.backbone.embeddings.tokens.weight.grad.clone()
    close(gradients(through=True), exact)
    assert (gradients(through=False) - exact).abs().max() > 1e-4


@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_forward_pass(cell):
    model = build_rnn(cell).eval()
    expected = logits_of(model, SEQUENCES)
    logits, state = model.start([ids[:2] for ids in SEQUENCES])
    alive = list(range(len(SEQUENCES)))
    for at in range(1, max(map(len, SEQUENCES))):
        for row, i in enumerate(alive):
            close(logits[row], expected[i][min(at, len(SEQUENCES[i]) - 1)])
        # In another order, and without those that have ended.
        left = [row for row, i in enumerate(alive) if len(SEQUENCES[i]) > at + 1][::-1]
        if not left:
            break
        state.select(left)
        alive = [alive[row] for row in left]
        logits = model.step(torch.tensor([SEQUENCES[i][at + 1] for i in alive]), state)
    assert at > 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_the_plan_is_a_permutation_in_the_order_of_steps(lengths):
    plan = TimeMajor.of(Layout.of(lengths))
    where = [(t, i) for i, length in enumerate(lengths) for t in range(length)]
    # Longest first; sequences of one length in their own order.
    longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    sorted_rows = [(t, i) for t in range(max(lengths)) for i in longest if t < lengths[i]]
    assert [where[row] for row in plan.rows] == sorted_rows
    assert [sorted_rows[row] for row in plan.back] == where
    assert plan.order.tolist() == longest
    assert [longest[at] for at in plan.place] == list(range(len(lengths)))
    assert plan.batch_sizes.tolist() == [sum(n > t for n in lengths) for t in range(max(lengths))]


@pytest.mark.parametrize("cell", CELLS)
def test_no_sequence_sees_another_one_or_what_follows(cell):
    model = build_rnn(cell).eval()
    together = logits_of(model, SEQUENCES)
    for ids, logits in zip(SEQUENCES, together, strict=True):
        close(model(PackedBatch.of([ids])), logits)
        close(model(PackedBatch.of([ids[: len(ids) // 2 + 1]])), logits[: len(ids) // 2 + 1])


def test_selected_rows_and_hidden_states():
    model = build_rnn("gru").eval()
    batch = PackedBatch.of(SEQUENCES)
    close(model(batch, select=batch.last), model(batch)[batch.last.rows])
    output = model.backbone(batch, output_hidden_states=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(26, 5), (26, 6), (26, 6), (26, 6)]
    close(output.hidden_states[0], model.backbone.embeddings.tokens.weight[batch.tokens])
    close(output.hidden_states[-1], output.last_hidden_state)
    with pytest.raises(ValueError, match="leave out `select`"):
        model.backbone(batch, select=batch.last, output_hidden_states=True)
    with pytest.raises(ValueError, match="a state of 2 sequences for a batch of 5"):
        model.backbone(batch, state=model.initial(2))
    with pytest.raises(CheckpointError, match="no attention"):
        model.backbone(batch, output_attentions=True)


def test_the_output_layer_may_be_the_table_of_embeddings():
    own = build_rnn("lstm")
    tied = build_rnn("lstm", embedding_size=6, tie_word_embeddings=True)
    batch = PackedBatch.of(SEQUENCES)
    for model, table in ((own, own.output), (tied, tied.backbone.embeddings.tokens)):
        nn.init.normal_(model.bias)
        hidden = model.backbone(batch).last_hidden_state
        close(model(batch), hidden @ table.weight.T + model.bias)
    assert tied.output is None


def test_dropout_is_on_the_embeddings_and_on_every_layer_but_not_between_steps():
    model = build_rnn("rnn", dropout=0.5).backbone.float()
    batch = PackedBatch.of([[1, 2, 3, 4] * 500])
    states = model(batch, output_hidden_states=True).hidden_states
    for state in states:
        assert 0.45 < (state == 0).float().mean() < 0.55
    # What goes from step to step is whole: the last layer's own state has no zeros.
    assert (model(batch).state.hidden != 0).all()
    assert torch.equal(model.eval()(batch).last_hidden_state, model(batch).last_hidden_state)


@pytest.mark.parametrize("cell", CELLS)
def test_bf16_autocast_runs_and_carries_float32(cell):
    model, batch = build_rnn(cell).float(), PackedBatch.of(SEQUENCES)
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = model.carry(batch, None)
        model.carry(batch, state)
    logits.float().sum().backward()
    assert state.hidden.dtype == torch.float32
    assert (logits.float() - expected).abs().max() < 0.1


@pytest.mark.parametrize(("cell", "gates"), [("rnn", 1), ("gru", 3), ("lstm", 4)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("v", "m", "h", "layers"), [(10, 4, 4, 1), (1000, 32, 32, 2)])
def test_parameters_by_closed_form(cell, gates, tied, v, m, h, layers):
    config = RnnConfig(
        cell=cell,
        vocab_size=v,
        embedding_size=m,
        hidden_size=h,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
    )
    recurrent = gates * h * (m + h + 2) + (layers - 1) * gates * h * (2 * h + 2)
    expected = v * m + recurrent + v + (0 if tied else v * h)
    assert sum(p.numel() for p in ClassicLM(RnnModel(config)).parameters()) == expected


def test_the_small_medium_and_large_lstm_of_the_literature():
    # Zaremba et al. 2014, section 4.1, vocabulary 10,000: 2 layers of 200, 650 and 1500.
    counts = []
    for size in (200, 650, 1500):
        with torch.device("meta"):
            model = ClassicLM(RnnModel(RnnConfig(embedding_size=size, hidden_size=size)))
        counts.append(sum(p.numel() for p in model.parameters()))
    # 2 V s + V + 2 layers of 4 s (2 s + 2).
    assert counts == [4_653_200, 19_780_400, 66_034_000]


def test_fresh_weights():
    torch.manual_seed(0)
    model = ClassicLM(RnnModel(RnnConfig(vocab_size=500, hidden_size=64, embedding_size=50)))
    for layer in model.backbone.layers:
        for parameter in layer.parameters():
            assert parameter.abs().max() <= 1 / 8
            assert parameter.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.1)
    for table in (model.output.weight, model.backbone.embeddings.tokens.weight):
        assert table.std().item() == pytest.approx(0.1, rel=0.02)
    assert not model.bias.any()


@pytest.mark.parametrize("cell", CELLS)
def test_learns_what_needs_a_memory(cell):
    torch.manual_seed(0)
    config = RnnConfig(
        cell=cell, vocab_size=8, embedding_size=8, hidden_size=24, num_hidden_layers=1
    )
    # The third token repeats the first: one step of context would not do.
    loss, unigram = learn(ClassicLM(RnnModel(config)))
    assert loss < 0.8 * unigram


def test_sorted_order_does_not_matter_to_the_loss():
    model = build_rnn("lstm").eval()
    one, other = PackedBatch.of(SEQUENCES), PackedBatch.of(SEQUENCES[::-1])
    losses = [
        F.cross_entropy(model(batch), batch.tokens, reduction="sum") for batch in (one, other)
    ]
    close(*losses)
