"""A model in shards, seen from one process of many that are not there (torch's fake group)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from pretune.models.families import FAMILIES
from pretune.training.distributed import World, assign, is_sharded
from pretune.training.sharded import own_rows, put_together, shard_model

RANK, SIZE = 1, 4
WORLD = World(RANK, SIZE, RANK, SIZE)
CPU = torch.device("cpu")


@pytest.fixture
def among_others() -> Iterator[None]:
    """Process 1 of 4: what the others send is never set."""
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=SIZE)
    yield
    dist.destroy_process_group()


@pytest.fixture
def model() -> nn.Module:
    """A backbone with 70 rows for 4 processes: 18, 18, 18 and 16."""
    family = FAMILIES["gpt2"]
    sizes = {"vocab_size": 70, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
    built = family.backbone(family.backbone.config_class.from_dict(sizes))
    built.init_weights()
    return built


class Wrapped(nn.Module):
    """A backbone in the place where models have theirs."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("table", torch.arange(5.0), persistent=False)


def rows_of(value: Tensor) -> Tensor:
    """The share of process 1, by hand."""
    size = -(-len(value) // SIZE)
    return value[size * RANK : size * (RANK + 1)]


@pytest.mark.usefixtures("among_others")
class TestShards:
    def test_are_filled_from_weights_that_never_were_on_the_device(self, model: nn.Module) -> None:
        whole = Wrapped(model)
        before = {name: p.detach().clone() for name, p in whole.named_parameters()}
        frozen = {name for name, p in whole.named_parameters() if name.endswith("bias")}
        for name, parameter in whole.named_parameters():
            parameter.requires_grad_(name not in frozen)
        shard_model(whole, CPU, SIZE)
        assert is_sharded(whole)
        for name, parameter in whole.named_parameters():
            assert isinstance(parameter, DTensor)
            assert parameter.shape == before[name].shape
            assert torch.equal(parameter.to_local(), rows_of(before[name])), name
            assert parameter.requires_grad == (name not in frozen)
            # Nothing behind the shard is larger than it, but for what makes all shards alike.
            held = parameter.to_local().untyped_storage().nbytes() // 4
            assert held <= -(-len(before[name]) // SIZE) * before[name][0].numel()
        assert torch.equal(whole.get_buffer("table"), torch.arange(5.0))

    def test_what_was_shared_is_shared(self, model: nn.Module) -> None:
        whole = Wrapped(model)
        whole.head = nn.Linear(16, 70, bias=False)
        whole.head.weight = whole.backbone.embeddings.tokens.weight  # type: ignore[union-attr]
        table = whole.head.weight.detach().clone()
        shard_model(whole, CPU, SIZE)
        assert whole.head.weight is whole.backbone.embeddings.tokens.weight  # type: ignore[union-attr]
        assert torch.equal(whole.head.weight.to_local(), rows_of(table))  # type: ignore[attr-defined]

    def test_only_own_rows_are_read_into_them(self, model: nn.Module) -> None:
        whole = Wrapped(copy.deepcopy(model))
        shard_model(whole, CPU, SIZE)
        name, parameter = next(iter(whole.named_parameters()))
        value = torch.randn(parameter.shape)
        unread = value.clone()
        own = rows_of(unread)
        kept = own.clone()
        unread.fill_(float("nan"))
        own.copy_(kept)
        assign(parameter, unread)
        assert torch.equal(parameter.to_local(), rows_of(value)), name  # type: ignore[attr-defined]

    def test_are_put_together_in_the_first_process_alone(self, model: nn.Module) -> None:
        whole = Wrapped(model)
        shard_model(whole, CPU, SIZE)
        group = dist.group.WORLD
        assert group is not None
        for parameter in whole.parameters():
            assert put_together(parameter, RANK, SIZE, group) is None
            together = put_together(parameter, 0, SIZE, group)
            assert together is not None
            assert together.shape == parameter.shape

    @pytest.mark.parametrize(("rows", "own"), [(9, 3), (4, 1), (3, 1), (1, 0)])
    def test_of_few_rows_some_processes_have_none(self, rows: int, own: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        value = torch.arange(float(rows))
        mesh = init_device_mesh("cpu", (SIZE,))
        shard = distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
        assert torch.equal(own_rows(value, shard), shard.to_local())
        assert len(own_rows(value, shard)) == own


class TestWorld:
    @pytest.mark.parametrize(("parallel", "expected"), [("ddp", False), ("fsdp", True)])
    def test_a_single_process_has_no_shards(self, parallel: str, expected: bool) -> None:
        assert WORLD.shards(parallel) is expected
        assert not World().shards(parallel)

    @pytest.mark.parametrize(
        ("local_rank", "really", "order"),
        [(0, True, ["work", "wait"]), (1, True, ["wait", "work"]), (1, False, ["work"])],
    )
    def test_one_process_of_each_machine_goes_first(
        self,
        local_rank: int,
        really: bool,
        order: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        seen: list[str] = []
        monkeypatch.setattr(World, "wait", lambda self: seen.append("wait"))
        with World(2 + local_rank, 4, local_rank, 2).first_on_machine(really=really):
            seen.append("work")
        assert seen == order
