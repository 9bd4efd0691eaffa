"""Finding where a number that is not finite came from: which module, which examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn


def first_bad_module(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The first part of a model that makes something not finite out of finite input, in words.

    Args:
        model: whose parts to watch.
        run: one forward and backward pass. Leaves gradients behind.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the weights of {name} are not finite themselves"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not found and any(not bool(t.isfinite().all()) for t in _tensors(outputs)):
                found.append(f"the first module to give it is {name or 'the model'}")

        return look

    handles = [part.register_forward_hook(watch(name)) for name, part in model.named_modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else _bad_gradient(model)


def _bad_gradient(model: nn.Module) -> str | None:
    """Backward goes from the last parameter to the first: the last bad one was the first to be."""
    for name, parameter in reversed(list(model.named_parameters())):
        grad = parameter.grad
        if grad is None:
            continue
        values = grad._values() if grad.is_sparse else grad
        if not bool(values.isfinite().all()):
            return f"the first gradient to be so is that of {name}"
    return None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module gives."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _tensors(getattr(value, item.name))


def some(items: list[str], most: int = 8) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
