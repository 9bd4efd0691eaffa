"""AdamW (Loshchilov & Hutter 2019, algorithm 2), and the one division of a run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

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
    """What is trained, by how: matrices decay, vectors (biases, LayerNorm) do not.

    Args:
        model: a backbone, or a model that holds one as `backbone`.
        weight_decay: of matrices.
        layer_decay: each layer learns at this times the rate of the one above it, the embeddings
            being the lowest (Howard & Ruder 2018, section 3.2); `scale` in the groups.
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
        {
            "params": parameters,
            "weight_decay": weight_decay if matrices else 0.0,
            "scale": scale,
        }
        for (scale, matrices), parameters in groups.items()
    ]


def _own_rates(model: nn.Module) -> dict[nn.Parameter, float]:
    """The rates of parts that learn quicker than the rest, in those of the model."""
    parts = (module for module in model.modules() if isinstance(module, Crf))
    return {parameter: part.rate for part in parts for parameter in part.parameters()}


def _depths(model: nn.Module) -> dict[str, int]:
    """0 for the embeddings, then each layer one more; above all the rest."""
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
    """1 for the first layer's parameters, and so on; 0 for those of no layer."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) + 1 if "layers" in parts else 0


class Optimizer:
    """AdamW whose step takes raw sums of gradients and divides them once.

    The division by the count and the clipping are one factor, applied inside the fused kernel: no
    extra pass over the gradients.

    On a CPU the lookup tables get their gradients as the rows that were looked up. They are laid
    into a table of zeros that is kept from step to step and cleared only where it was written:
    allocating and clearing 47 MB for MiniLM's vocabulary is a tenth of a step. The update is the
    dense one all the same; rows that were not looked up decay and keep their momentum.

    Args:
        model: whose trainable parameters to update.
        weight_decay: of matrices.
        betas: memory of the gradient and of its square.
        eps: added to the root.
        clip: the longest mean gradient (Euclidean norm over all parameters), or None.
        layer_decay: see `parameter_groups`.
        sparse: whether lookup tables may have sparse gradients (not where others are to be added).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        clip: float | None,
        layer_decay: float = 1.0,
        sparse: bool = True,
    ) -> None:
        self.clip = clip
        groups = parameter_groups(model, weight_decay, layer_decay)
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self._sharded = is_sharded(model)
        known = all(p.device.type in ("cpu", "cuda") for p in self._names)
        self._fused = known and not self._sharded
        self.adamw = torch.optim.AdamW(groups, betas=betas, eps=eps, fused=self._fused)
        self._tables = _want_sparse_gradients(model) if sparse else {}
        self._touched: dict[nn.Parameter, Tensor] = {}

    @classmethod
    def of(cls, model: nn.Module, options: TrainSection, *, sparse: bool = True) -> Self:
        """As the `train:` section of a recipe says."""
        return cls(
            model,
            weight_decay=options.weight_decay,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            clip=options.clip,
            layer_decay=options.layer_decay,
            sparse=sparse,
        )

    def state(self) -> dict[str, Tensor]:
        """The moments by `optimizer.KIND.PARAMETER`; empty before the first step."""
        return {
            f"optimizer.{kind}.{name}": value
            for parameter, name in self._names.items()
            for kind, value in self.adamw.state.get(parameter, {}).items()
        }

    def restore(self, state: TrainingState) -> None:
        """Go back to what `state` gave, in this process or in however many others."""
        self.zero_grad()
        self.adamw.state.clear()
        moments: dict[str, Tensor] = {}
        for parameter, name in self._names.items():
            count = state.tensors.get(f"optimizer.step.{name}")
            if count is None:
                continue
            # The count of steps belongs where the kernel reads it.
            where = parameter.device if self._fused else torch.device("cpu")
            found = {"step": count.to(where, copy=True)}
            for kind in ("exp_avg", "exp_avg_sq"):
                found[kind] = torch.zeros_like(parameter, requires_grad=False)
                moments[f"optimizer.{kind}.{name}"] = found[kind]
            self.adamw.state[parameter] = found
        state.fill(moments)

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of the raw sums, a scalar tensor (on the parameters' device)."""
        self._spread_sparse()
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
        if self._sharded:
            square = norm.square()
            dist.all_reduce(square)
            norm = square.sqrt()
        return norm

    def step(self, learning_rate: float, count: int, norm: Tensor) -> None:
        """Update the parameters with the mean gradient, clipped, and forget the gradients.

        Args:
            learning_rate: of this update.
            count: what the sums are divided by.
            norm: what `gradient_norm` gave.
        """
        self._spread_sparse()
        # As torch.nn.utils.clip_grad_norm_ has it, 1e-6 included.
        divisor = torch.full_like(norm, float(count))
        if self.clip is not None:
            divisor = divisor * ((norm / count + 1e-6) / self.clip).clamp(min=1.0)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate * group["scale"]
        if self._fused:
            # The kernel divides by this; it is how torch.amp.GradScaler unscales.
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
        """Lay sparse gradients into their tables of zeros and make those the gradients."""
        for parameter, table in self._tables.items():
            grad = parameter.grad
            if grad is None or not grad.is_sparse:
                continue
            rows = grad._indices()[0]
            table.index_add_(0, rows, grad._values())
            parameter.grad = table
            self._touched[parameter] = torch.unique(rows)


def _want_sparse_gradients(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Ask the lookup tables on a CPU for sparse gradients; gives a table of zeros for each."""
    owners: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    tables = {}
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            continue
        weight = module.get_parameter("weight")
        # A table that is also an output layer gets a dense gradient from there.
        if weight.requires_grad and weight.device.type == "cpu" and owners[weight] == 1:
            module.sparse = True
            tables[weight] = torch.zeros_like(weight)
    return tables


def _all(groups: Iterable[dict[str, object]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
