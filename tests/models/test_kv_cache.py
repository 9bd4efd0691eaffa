"""A cache changes what it costs to read one more token, and nothing of what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.models.gpt2 import Gpt2Config, Gpt2Model
from pretune.models.heads.language import CausalLM
from pretune.models.kv_cache import BLOCK

VOCABULARY = 61


@pytest.fixture(scope="module")
def model() -> CausalLM:
    torch.manual_seed(3)
    config = Gpt2Config(
        vocab_size=VOCABULARY, n_positions=2 * BLOCK + 20, n_embd=24, n_layer=3, n_head=4
    )
    made = CausalLM(Gpt2Model(config))
    for name, parameter in made.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3)
    return made.eval()


def from_scratch(model: CausalLM, sequences: list[list[int]]) -> Tensor:
    """The last logits of each sequence, computed alone and without a cache."""
    return torch.cat([model(PackedBatch.of([ids]))[-1:] for ids in sequences])


def draw(count: int) -> list[int]:
    return torch.randint(VOCABULARY, (count,)).tolist()


def feed(model: CausalLM, sequences: list[list[int]], state: object) -> Tensor:
    tokens = draw(len(sequences))
    for ids, token in zip(sequences, tokens, strict=True):
        ids.append(token)
    return model.step(torch.tensor(tokens), state)


@pytest.mark.parametrize("lengths", [(5,), (4, 4, 4), (9, 1, 30, 2)])
@torch.inference_mode()
def test_each_step_is_as_if_all_were_computed_anew(
    model: CausalLM, lengths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    sequences = [draw(n) for n in lengths]
    logits, state = model.start(sequences)
    torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)
    for _ in range(6):
        logits = feed(model, sequences, state)
        torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_cache_grows_beyond_a_block(model: CausalLM) -> None:
    torch.manual_seed(1)
    sequences = [draw(BLOCK - 2), draw(2 * BLOCK - 1), draw(3)]
    _, state = model.start(sequences)
    for _ in range(4):
        logits = feed(model, sequences, state)
        torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_it_holds_up_to_the_last_position(model: CausalLM) -> None:
    sequences = [draw(model.context_length - 1), draw(2)]
    _, state = model.start(sequences)
    logits = feed(model, sequences, state)
    assert len(sequences[0]) == model.context_length
    torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[2, 0], [2, 1], [0, 1], [1, 1, 0, 1], [2, 1, 0], [0]])
@torch.inference_mode()
def test_sequences_are_dropped_forked_and_reordered(model: CausalLM, rows: list[int]) -> None:
    torch.manual_seed(2)
    sequences = [draw(n) for n in (BLOCK + 3, 3, 7)]
    _, state = model.start(sequences)
    feed(model, sequences, state)
    state.select(rows)
    chosen = [list(sequences[row]) for row in rows]
    for _ in range(3):
        logits = feed(model, chosen, state)
        torch.testing.assert_close(logits, from_scratch(model, chosen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "copied"),
    [([3, 1, 2], False), ([0, 1], False), ([3, 2], True), ([0, 2, 1, 3], True), ([0], True)],
)
@torch.inference_mode()
def test_those_that_stay_in_their_places_are_not_copied(
    model: CausalLM, rows: list[int], copied: bool
) -> None:
    _, state = model.start([draw(n) for n in (5, 3, 7, 4)])
    places = [layer.keys.data_ptr() for layer in state.layers]
    state.select(rows)
    assert [
        layer.keys.data_ptr() == place for layer, place in zip(state.layers, places, strict=True)
    ] == ([not copied] * len(places))
    assert all(len(layer.keys) == len(layer.values) == len(rows) for layer in state.layers)


@pytest.mark.parametrize("lengths", [(3, 5), (BLOCK + 9,)])
@torch.inference_mode()
def test_others_join_a_running_batch(model: CausalLM, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    sequences, more = [draw(6), draw(40)], [draw(n) for n in lengths]
    _, state = model.start(sequences)
    feed(model, sequences, state)
    state.extend(model.start(more)[1])
    sequences += more
    for _ in range(3):
        logits = feed(model, sequences, state)
        torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_who_joins_takes_a_free_place_and_the_others_are_not_copied(model: CausalLM) -> None:
    torch.manual_seed(5)
    sequences = [draw(n) for n in (9, 30, 4, 40)]
    _, state = model.start(sequences)
    # What was in the place before may be anything.
    for layer in state.layers:
        layer.keys[3], layer.values[3] = float("nan"), float("nan")
    state.select([0, 1, 2])
    places = [layer.keys.data_ptr() for layer in state.layers]
    new = draw(3)
    state.extend(model.start([new])[1])
    assert [layer.keys.data_ptr() for layer in state.layers] == places
    sequences = [*sequences[:3], new]
    for _ in range(3):
        logits = feed(model, sequences, state)
        torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_many_that_join_one_by_one_are_rarely_copied(model: CausalLM) -> None:
    sequences = [draw(2)]
    _, state = model.start(sequences)
    kept = [state.layers[0].keys]
    for _ in range(39):
        sequences.append(draw(2))
        state.extend(model.start(sequences[-1:])[1])
        kept.append(state.layers[0].keys)
    assert len({keys.data_ptr() for keys in kept}) <= 10
    logits = feed(model, sequences, state)
    torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_more_sequences_than_the_row_tile(model: CausalLM) -> None:
    sequences = [draw(2) for _ in range(259)]  # above 256 rows a model carries padding rows
    _, state = model.start(sequences)
    logits = feed(model, sequences, state)
    torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)


def follow_from_scratch(model: CausalLM, sequences: list[list[int]], new: list[int]) -> Tensor:
    """The logits after each of the last `new` tokens of each sequence."""
    found = [model(PackedBatch.of([ids]))[-n:] for ids, n in zip(sequences, new, strict=True)]
    return torch.cat(found)


@pytest.mark.parametrize("every", [False, True])
@torch.inference_mode()
def test_many_tokens_at_once_are_as_if_all_were_computed_anew(model: CausalLM, every: bool) -> None:
    torch.manual_seed(4)
    sequences = [draw(BLOCK - 3), draw(2), draw(60)]
    _, state = model.start(sequences)
    for new in ([5, 1, 40], [1, 1, 1], [2, 2 * BLOCK, 1]):
        more = [draw(n) for n in new]
        sequences = [[*ids, *tail] for ids, tail in zip(sequences, more, strict=True)]
        logits = model.follow(more, state, every=every)
        expected = follow_from_scratch(model, sequences, new if every else [1] * 3)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        # Between such passes: a step, and the sequences in another order.
        logits = feed(model, sequences, state)
        torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)
    state.select([2, 0, 2])
    sequences = [[*sequences[i]] for i in (2, 0, 2)]
    logits = feed(model, sequences, state)
    torch.testing.assert_close(logits, from_scratch(model, sequences), atol=1e-5, rtol=1e-5)
