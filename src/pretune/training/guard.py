"""Watching the numbers: values that are not finite, and losses far above the recent ones."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from pretune.recipe.schema import GuardSection

#: The median absolute deviation of a normal distribution is its standard deviation over this.
MAD_TO_SD = 1.4826


@dataclass(frozen=True)
class Trouble:
    """The reason not to make an update."""

    what: str  # a phrase for people
    finite: bool  # True for a spike, False for NaN or infinity


def robust_z(value: float, recent: list[float]) -> float:
    """The distance of a value from the median of others, in standard deviations.

    The standard deviation is estimated by the median absolute deviation, which a few outliers do
    not move (Iglewicz & Hoaglin 1993, section 3.3). It is at least 2 % of the median, so that in a
    loss that hardly moves a ripple is not called a spike.
    """
    median = statistics.median(recent)
    spread = MAD_TO_SD * statistics.median(abs(x - median) for x in recent)
    return (value - median) / max(spread, 0.02 * abs(median), 1e-12)


class Guard:
    """Judges each update before it is made."""

    def __init__(self, options: GuardSection) -> None:
        self.options = options
        self.losses: deque[float] = deque(maxlen=options.window)
        self.streak = 0

    def judge(self, loss: float, norm: float) -> Trouble | None:
        """Check an update by its mean loss and gradient norm; None: it may be made."""
        if not math.isfinite(loss):
            return Trouble(f"the loss is {loss}", finite=False)
        if not math.isfinite(norm):
            return Trouble(f"the gradient is {norm}", finite=False)
        # A few losses do not tell yet what is usual.
        if not self.options.watches_spikes or len(self.losses) < max(8, self.options.window // 4):
            return None
        z = robust_z(loss, list(self.losses))
        if z <= self.options.threshold:
            self.streak = 0
            return None
        self.streak += 1
        if self.streak < self.options.patience:
            return None
        usual = statistics.median(self.losses)
        return Trouble(
            f"the loss jumped to {loss:.4g} from a usual {usual:.4g} ({z:.1f} standard deviations)",
            finite=True,
        )

    def accept(self, loss: float) -> None:
        """Remember the loss of an update that was made."""
        self.losses.append(loss)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"losses": list(self.losses), "streak": self.streak}

    def restore(self, values: dict[str, Any]) -> None:
        """Return to what `to_dict` gave."""
        self.losses = deque(values["losses"], maxlen=self.options.window)
        self.streak = int(values["streak"])


def first_bad_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Name the first module whose output, or the first parameter whose gradient, is not finite.

    Calls `run`, a forward and backward pass, and returns None if all is finite this time.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the weights of {name} are not finite themselves"
    culprits: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not culprits and any(not bool(t.isfinite().all()) for t in _tensors(outputs)):
                culprits.append(f"the first module to give it is {name or 'the model'}")

        return look

    handles = [part.register_forward_hook(watch(name)) for name, part in model.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return culprits[0] if culprits else _bad_gradient(model)


def _bad_gradient(model: nn.Module) -> str | None:
    """Name the first bad gradient: backward runs from the last parameter to the first."""
    for name, parameter in reversed(list(model.named_parameters())):
        grad = parameter.grad
        if grad is None:
            continue
        values = grad._values() if grad.is_sparse else grad
        if not bool(values.isfinite().all()):
            return f"the first gradient that is not finite is that of {name}"
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in the output of a module."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))
