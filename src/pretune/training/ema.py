"""A moving average of the weights, evaluated and saved in place of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pretune.errors import CheckpointError
from pretune.training.distributed import is_shard


class MovingAverage:
    """An exponential moving average of the trained weights (Polyak & Juditsky 1992).

    After update `t`, counted from 1, `average = d * average + (1 - d) * weight` with
    `d = min(decay, (1 + t) / (10 + t))`: early averages forget the random start sooner, as
    TensorFlow's `ExponentialMovingAverage` documents it for `num_updates`. The averages have the
    weights' dtype and device; a weight that several modules share is averaged once.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        #: The number of calls of `update`.
        self.updates = 0
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters: list[Tensor] = [parameter for _, parameter in named]
        self._wrapped: list[Any] = [m for m in model.modules() if hasattr(m, "reshard")]
        #: The averages by the parameters' names, for checkpoints.
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in named}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages toward the present weights; call it after each optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.tensors.values()), self._parameters, 1.0 - decay)

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from an earlier average.

        Raises:
            CheckpointError: the averages are of another model; nothing is changed.
        """
        for name in sorted({*tensors, *self.tensors}):
            shapes = [tuple(s[name].shape) if name in s else None for s in (tensors, self.tensors)]
            if shapes[0] != shapes[1]:
                there, here = (shape or "nothing" for shape in shapes)
                raise CheckpointError(
                    f"the moving average is of another model: {name} is {there} there, {here} here",
                    "Resume with the recipe it was saved with, or train anew.",
                )
        for name, average in self.tensors.items():
            average.copy_(tensors[name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context that gives the model the averages as its weights; nothing may be trained in it.

        Storages are swapped, which takes no time and no memory. Shards are copied instead, because
        `fully_shard` keeps pointers of its own.
        """
        own = [p.clone() if is_shard(p) else p for p in (q.data for q in self._parameters)]
        try:
            self._give(self.tensors.values())
            yield
        finally:
            self._give(own)

    @torch.no_grad()
    def _give(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            if is_shard(parameter):
                parameter.copy_(value)
            else:
                parameter.data = value
        for module in self._wrapped:  # drop what was gathered for the last forward pass
            module.reshard()
