"""AdamW (Loshchilov & Hutter 2019, algorithm 2), and the one division of a run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors (biases, LayerNorm) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


class Optimizer:
    """AdamW whose step takes raw sums of gradients and divides them once.

    The division by the count and the clipping are one factor, applied inside the fused kernel: no
    extra pass over the gradients.

    Args:
        model: whose trainable parameters to update.
        weight_decay: of matrices.
        betas: memory of the gradient and of its square.
        eps: added to the root.
        clip: the longest mean gradient (Euclidean norm over all parameters), or None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        clip: float | None,
    ) -> None:
        self.clip = clip
        groups = parameter_groups(model, weight_decay)
        self._fused = all(p.device.type in ("cpu", "cuda") for p in _all(groups))
        self.adamw = torch.optim.AdamW(groups, betas=betas, eps=eps, fused=self._fused)

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of the raw sums, a scalar tensor (on the parameters' device)."""
        grads = self._grads()
        if not grads:
            return torch.zeros(())
        norms: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        return norms

    def step(self, learning_rate: float, count: int, norm: Tensor) -> None:
        """Update the parameters with the mean gradient, clipped, and forget the gradients.

        Args:
            learning_rate: of this update.
            count: what the sums are divided by.
            norm: what `gradient_norm` gave.
        """
        # As torch.nn.utils.clip_grad_norm_ has it, 1e-6 included.
        divisor = torch.full_like(norm, float(count))
        if self.clip is not None:
            divisor = divisor * ((norm / count + 1e-6) / self.clip).clamp(min=1.0)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        if self._fused:
            # The kernel divides by this; it is how torch.amp.GradScaler unscales.
            self.adamw.grad_scale = divisor.to(torch.float32)  # type: ignore[attr-defined]
        else:
            torch._foreach_div_(self._grads(), divisor)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def _grads(self) -> list[Tensor]:
        return [p.grad for p in _all(self.adamw.param_groups) if p.grad is not None]


def _all(groups: Iterable[dict[str, object]]) -> list[nn.Parameter]:
    return [p for group in groups for p in group["params"]]  # type: ignore[attr-defined]
