"""AdamW (Loshchilov & Hutter 2019, algorithm 2), and the only division of a run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretune.models.heads.crf import Crf
from pretune.recipe.schema import TrainSection
from pretune.training.distributed import is_sharded, local
from pretune.training.state import TrainingState


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """Group the trained parameters: matrices decay, vectors (biases, LayerNorm) do not.

    Args:
        model: a backbone, or a model that holds one as `backbone`.
        weight_decay: of matrices.
        layer_decay: each layer learns at this times the rate of the one above it; the embeddings
            are the lowest (Howard & Ruder 2018, section 3.2).

    Returns:
        groups for `torch.optim`, with the factor of the learning rate under `scale`.
    """
    depths = _depths(model)
    top = max(depths.values(), default=0)
    rates = _own_rates(model)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = layer_decay ** (top - depths[name]) * rates.get(parameter, 1.0)
            groups.setdefault((scale, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if matrices else 0.0, "scale": scale}
        for (scale, matrices), parameters in groups.items()
    ]


def _own_rates(model: nn.Module) -> dict[nn.Parameter, float]:
    """Factors of the learning rate for parts that learn faster than the rest."""
    parts = (module for module in model.modules() if isinstance(module, Crf))
    return {parameter: part.rate for part in parts for parameter in part.parameters()}


def _depths(model: nn.Module) -> dict[str, int]:
    """By name: 0 for the embeddings, 1 for the first layer, and more for what lies above."""
    layers = 1 + max((_layer_of(name) for name, _ in model.named_parameters()), default=0)
    depths = {}
    for name, _ in model.named_parameters():
        if ".embeddings." in f".{name}":
            depths[name] = 0
        else:
            number = _layer_of(name)
            depths[name] = number if number >= 1 else layers
    return depths


def _layer_of(name: str) -> int:
    """1 for parameters of the first layer, 2 for the second; 0 outside the layers."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) + 1 if "layers" in parts else 0


class Optimizer:
    """AdamW whose step takes raw sums of gradients and divides them once.

    The division by the count and the clipping are one factor, applied inside the fused kernel: no
    extra pass over the gradients.

    On a CPU, embedding tables get sparse gradients: only the rows that were looked up. They are
    added to a table of zeros that is kept from step to step and cleared only where it was written;
    allocating and clearing 47 MB for MiniLM's vocabulary would be a tenth of a step. The update is
    still the dense one: rows that were not looked up decay and keep their momentum.
    """

    def __init__(self, model: nn.Module, options: TrainSection, *, sparse: bool = True) -> None:
        self.clip = options.clip
        groups = parameter_groups(model, options.weight_decay, options.layer_decay)
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._sharded = is_sharded(model)
        known = all(p.device.type in ("cpu", "cuda") for p in self._names)
        self._fused = known and not self._sharded
        betas = options.beta1, options.beta2
        self.adamw = torch.optim.AdamW(groups, betas=betas, eps=options.eps, fused=self._fused)
        # Where several processes add up their gradients, they are dense.
        self._tables = _want_sparse_gradients(model) if sparse else {}
        self._touched: dict[nn.Parameter, Tensor] = {}

    def state(self) -> dict[str, Tensor]:
        """The moments by `optimizer.KIND.PARAMETER`; empty before the first step."""
        return {
            f"optimizer.{kind}.{name}": value
            for parameter, name in self._names.items()
            for kind, value in self.adamw.state.get(parameter, {}).items()
        }

    def restore(self, state: TrainingState) -> None:
        """Return to what `state` gave, with the same number of processes or another."""
        self.zero_grad()
        self.adamw.state.clear()
        moments: dict[str, Tensor] = {}
        for parameter, name in self._names.items():
            count = state.tensors.get(f"optimizer.step.{name}")
            if count is None:
                continue
            # The fused kernel reads the count of steps on the device, the others on the host.
            where = parameter.device if self._fused else torch.device("cpu")
            values = {"step": count.to(where, copy=True)}
            for kind in ("exp_avg", "exp_avg_sq"):
                values[kind] = torch.zeros_like(parameter, requires_grad=False)
                moments[f"optimizer.{kind}.{name}"] = values[kind]
            self.adamw.state[parameter] = values
        state.fill(moments)

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of the raw sums: a scalar tensor on the parameters' device."""
        self._spread_sparse()
        # Of an embedding table only the rows that were looked up are not zero.
        grads = []
        for parameter in _all(self.adamw.param_groups):
            if parameter in self._touched:
                grads.append(self._tables[parameter][self._touched[parameter]])
            elif parameter.grad is not None:
                grads.append(parameter.grad)
        if not grads:
            return torch.zeros(())
        norms = torch._foreach_norm([local(grad) for grad in grads])
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if self._sharded:  # each process has seen only its shard
            square = norm.square()
            dist.all_reduce(square)
            norm = square.sqrt()
        return norm

    def step(self, learning_rate: float, count: int, norm: Tensor) -> None:
        """Update the parameters with the mean gradient, clipped, and drop the gradients."""
        self._spread_sparse()
        # Clipping as torch.nn.utils.clip_grad_norm_ does it, including its 1e-6.
        divisor = torch.full_like(norm, float(count))
        if self.clip is not None:
            divisor = divisor * ((norm / count + 1e-6) / self.clip).clamp(min=1.0)
        # Each group of parameters has its own rate.
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate * group["scale"]
        if self._fused:
            # The kernel divides by this, as it does for torch.amp.GradScaler.
            self.adamw.grad_scale = divisor.to(torch.float32)  # type: ignore[attr-defined]
        else:
            grads = [p.grad for p in _all(self.adamw.param_groups) if p.grad is not None]
            torch._foreach_div_([local(grad) for grad in grads], divisor)
        self.adamw.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.adamw.zero_grad(set_to_none=True)
        for parameter, rows in self._touched.items():
            self._tables[parameter][rows] = 0.0
        self._touched.clear()

    def _spread_sparse(self) -> None:
        """Add sparse gradients to their tables of zeros, and make the tables the gradients."""
        for parameter, table in self._tables.items():
            grad = parameter.grad
            if grad is None or not grad.is_sparse:
                continue
            rows = grad._indices()[0]
            table.index_add_(0, rows, grad._values())
            parameter.grad = table
            self._touched[parameter] = torch.unique(rows)


def _want_sparse_gradients(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Switch embedding tables on a CPU to sparse gradients; returns a table of zeros for each."""
    owners: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    tables = {}
    for module in model.modules():
        # A table that is also an output layer gets a dense gradient from there.
        if not isinstance(module, nn.Embedding):
            continue
        weight = module.get_parameter("weight")
        if weight.requires_grad and weight.device.type == "cpu" and owners[weight] == 1:
            module.sparse = True
            tables[weight] = torch.zeros_like(weight)
    return tables


def _all(groups: Iterable[dict[str, object]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
