from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pretune.errors import CheckpointError
from pretune.training.ema import MovingAverage


class Tied(nn.Module):
    """An output layer that is the embeddings, and a vector beside."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.out(self.table(ids))
        return logits


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


def train(model: nn.Module, steps: int, after: Callable[[], None]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(steps):
        ids = torch.tensor([step % 5, (3 * step) % 5])
        nn.functional.cross_entropy(model(ids), (ids + 1) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()
        after()


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_is_the_slow_loop(model: Tied, decay: float) -> None:
    average = MovingAverage(model, decay)
    slow = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}
    count = 0

    def after() -> None:
        nonlocal count
        count += 1
        memory = min(decay, (1 + count) / (10 + count))
        for name, parameter in model.named_parameters():
            new = parameter.detach().double().numpy()
            slow[name] = memory * slow[name] + (1 - memory) * new
        average.update()

    train(model, 30, after)
    assert average.updates == 30
    assert set(average.tensors) == set(slow) == {"table.weight", "out.bias"}
    for name, tensor in average.tensors.items():
        np.testing.assert_allclose(tensor.numpy(), slow[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(tensor.numpy(), dict(model.named_parameters())[name].detach())


def test_the_first_update_forgets_most_of_the_start() -> None:
    """(1 + 1) / (10 + 1) of the start stays."""
    layer = nn.Linear(1, 1)
    nn.init.ones_(layer.weight)
    average = MovingAverage(layer, 0.999)
    nn.init.zeros_(layer.weight)
    average.update()
    assert float(average.tensors["weight"]) == pytest.approx(2 / 11)


def test_inside_the_model_has_the_averages_and_afterwards_its_own(model: Tied) -> None:
    average = MovingAverage(model, 0.9)
    train(model, 5, average.update)
    own, pointer = copies(model), model.table.weight.data_ptr()
    averages = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with average.applied():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, averages[name])
        assert torch.equal(model.out.weight, averages["table.weight"]), "the tied one too"
        assert model.out.weight is model.table.weight
        assert model.table.weight.data_ptr() == average.tensors["table.weight"].data_ptr()
        ids = torch.arange(5)
        expected = averages["table.weight"] @ averages["table.weight"].T + averages["out.bias"]
        torch.testing.assert_close(model(ids), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])
    assert model.table.weight.data_ptr() == pointer
    for name, tensor in average.tensors.items():
        assert torch.equal(tensor, averages[name])


def test_an_exception_inside_changes_nothing(model: Tied) -> None:
    average = MovingAverage(model, 0.9)
    train(model, 5, average.update)
    own = copies(model)
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])


def test_using_the_averages_does_not_change_the_course(model: Tied) -> None:
    twin = Tied()
    twin.load_state_dict(model.state_dict())
    train(twin, 8, lambda: None)
    average = MovingAverage(model, 0.9)

    def after() -> None:
        average.update()
        with average.applied(), torch.inference_mode():
            model(torch.arange(5))

    train(model, 8, after)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process, as torchrun would make it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_sharded_model_sees_them_too() -> None:
    """With weights in the outermost module, which stays gathered after a forward pass."""
    torch.manual_seed(0)
    inner, outer = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)
    weights = [layer.weight.detach().clone() for layer in (inner, outer)]
    model = nn.Sequential(inner, outer)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(inner, mesh=mesh)
    fully_shard(model, mesh=mesh)
    average = MovingAverage(model, 0.9)
    x = torch.randn(4, 3)
    expected = x @ weights[0].T @ weights[1].T
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        for tensor in average.tensors.values():
            tensor.mul_(2)
        with average.applied():
            torch.testing.assert_close(model(x), 4 * expected)
        torch.testing.assert_close(model(x), expected)
    average.update()
    weight = average.tensors["0.weight"].full_tensor()  # type: ignore[attr-defined]
    torch.testing.assert_close(weight, weights[0] * (1 + 2 / 11))


def test_what_does_not_learn_is_not_averaged(model: Tied) -> None:
    model.out.bias.requires_grad_(False)
    assert set(MovingAverage(model, 0.9).tensors) == {"table.weight"}


def test_goes_on_where_it_was(model: Tied) -> None:
    whole = MovingAverage(model, 0.9)
    parts = MovingAverage(model, 0.9)

    def after() -> None:
        nonlocal parts
        whole.update()
        parts.update()
        if parts.updates == 4:
            saved = {name: tensor.clone() for name, tensor in parts.tensors.items()}
            parts = MovingAverage(model, 0.9)
            parts.load(saved, 4)

    train(model, 9, after)
    assert parts.updates == whole.updates == 9
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, parts.tensors[name])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"out.bias": torch.zeros(5)}, r"table.weight is nothing there, \(5, 3\) here"),
        (
            {"out.bias": torch.zeros(5), "table.weight": torch.zeros(4, 3)},
            r"table.weight is \(4, 3\) there, \(5, 3\) here",
        ),
        (
            {"a": torch.ones(2), "out.bias": torch.zeros(5), "table.weight": torch.zeros(5, 3)},
            r"a is \(2,\) there, nothing here",
        ),
    ],
)
def test_refuses_those_of_another_model(
    model: Tied, tensors: dict[str, torch.Tensor], said: str
) -> None:
    average = MovingAverage(model, 0.9)
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with pytest.raises(CheckpointError, match=said):
        average.load(tensors, 3)
    assert average.updates == 0
    for name, tensor in average.tensors.items():
        assert torch.equal(tensor, before[name])
