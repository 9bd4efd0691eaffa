"""Rotary positions (Su et al. 2021, "RoFormer", section 3.2.2).

Each head's query and key are turned by angles that grow with their position: pairs of dimensions i
and i + r/2 by position * theta^(-2i / r), where r dimensions are turned. The product of a query and
a key then depends on their distance only.

Models that read longer texts than they were first trained on change the frequencies. The kinds are
those of transformers' `rope_parameters`; their formulas are in the functions below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretune.data.batch import Layout
from pretune.errors import CheckpointError


@dataclass(frozen=True)
class Turns:
    """The cosines and sines of a batch's angles, for all layers that turn by the same ones.

    Attributes:
        cos: `[T, 1, r]`, the second half like the first.
        sin: `[T, 1, r]`, the first half negated: `x * cos + swapped(x) * sin` turns `x`.
    """

    cos: Tensor
    sin: Tensor

    def at(self, rows: Tensor) -> Turns:
        """The angles of some rows."""
        return Turns(self.cos[rows], self.sin[rows])

    def turn(self, x: Tensor) -> Tensor:
        """Turn the first r dimensions of `[T, H, D]`; the others stay."""
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            width = cos.shape[-1]
            turned, kept = x[..., :width], x[..., width:]
            return torch.cat([turned * cos + turned.roll(width // 2, -1) * sin, kept], -1)
        if torch.is_grad_enabled() and x.requires_grad:
            differentiable: Tensor = _Turn.apply(x, cos, sin)  # type: ignore[no-untyped-call]
            return differentiable
        return _turned(x, cos, sin)


class _Turn(torch.autograd.Function):
    """`_turned`, whose gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What `Turns.turn` gives, in as few passes over the numbers as there can be."""
    width, half = cos.shape[-1], cos.shape[-1] // 2
    if width == x.shape[-1]:
        y = x * cos
    else:
        y = x.clone()
        y[..., :width].mul_(cos)
    y[..., :half].addcmul_(x[..., half:width], sin[..., :half])
    y[..., half:width].addcmul_(x[..., :half], sin[..., half:])
    return y


class Rope:
    """Turns positions into angles.

    Layers with the same angles share one object, which computes them once for all.

    Attributes:
        rates: `[r / 2]` angle per position of each pair of dimensions, in float32.
        scaling: factor on cosines and sines (yarn).
        grown: for `dynamic`, gives the rates of sequences with `[T]` tokens as `[T, r / 2]`.
    """

    def __init__(
        self,
        rates: Tensor,
        scaling: float = 1.0,
        grown: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.rates, self.scaling, self.grown = rates, scaling, grown

    @classmethod
    def of(cls, parameters: Mapping[str, Any], head_dim: int, max_positions: int) -> Rope:
        """Read one entry of transformers' `rope_parameters`.

        Args:
            parameters: `rope_type`, `rope_theta`, and what the kind needs.
            head_dim: width of a head.
            max_positions: `max_position_embeddings` of the model.

        Raises:
            CheckpointError: the kind is unknown, or a number is missing or makes no sense.
        """
        kind = parameters.get("rope_type", "default")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise CheckpointError(
                f"config: the kind of rotary positions, rope_type {str(kind)[:100]!r}, is not "
                "supported",
                f"Known: {', '.join(_KINDS)}.",
            )
        factor = _number(parameters, "partial_rotary_factor", 1.0, low=0.0, high=1.0)
        width = int(head_dim * factor)
        if width < 2 or width % 2:  # they are turned in pairs
            raise CheckpointError(
                f"config: rotary positions turn {width} dimensions of a head of {head_dim}"
            )
        base = _Base(_number(parameters, "rope_theta", low=1e-3), width, max_positions)
        # On the CPU whatever the default device: no checkpoint holds the rates, so that a model
        # built on the meta device would never get them.
        with torch.device("cpu"):
            return _KINDS[kind](parameters, base)

    def turns(self, positions: Tensor, layout: Layout) -> Turns:
        """The angles of packed tokens.

        Args:
            positions: `[T]`; the places past `layout.total` are padding.
            layout: their sequences; only the rates of `dynamic` depend on it.
        """
        rates = self.rates.to(positions.device)
        if self.grown is not None:
            rates = self.grown(_lengths(positions, layout))
        angles = positions[:, None].float() * rates
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return Turns(torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None])


@dataclass(frozen=True)
class _Base:
    """What all kinds start from: theta, the number r of dimensions, and the usual longest text."""

    theta: float
    width: int
    max_positions: int

    def exponents(self) -> Tensor:
        """`[r / 2]`: 2i / r."""
        return torch.arange(0, self.width, 2, dtype=torch.float32) / self.width

    def rates(self, theta: float | Tensor | None = None) -> Tensor:
        """`[r / 2]`: theta^(-2i / r)."""
        theta = self.theta if theta is None else theta
        return torch.as_tensor(1.0 / (theta ** self.exponents()))


def _default(parameters: Mapping[str, Any], base: _Base) -> Rope:
    return Rope(base.rates())


def _linear(parameters: Mapping[str, Any], base: _Base) -> Rope:
    """Position interpolation (Chen et al. 2023): positions are divided by a factor."""
    return Rope(base.rates() / _factor(parameters))


def _dynamic(parameters: Mapping[str, Any], base: _Base) -> Rope:
    """NTK-aware scaling: for a text longer than usual, theta grows with its length.

    theta * (factor * length / usual - (factor - 1))^(r / (r - 2))
    """
    factor, usual, width = _factor(parameters), base.max_positions, base.width
    if width <= 2:
        raise CheckpointError("config: rope_type 'dynamic' needs more than 2 turned dimensions")

    def grown(lengths: Tensor) -> Tensor:
        stretch = factor * lengths.clamp(min=usual) / usual - (factor - 1)
        theta = base.theta * stretch ** (width / (width - 2))
        return 1.0 / (theta[:, None] ** base.exponents().to(lengths.device))

    return Rope(base.rates(), grown=grown)


def _llama3(parameters: Mapping[str, Any], base: _Base) -> Rope:
    """Llama 3.1: slow rates are divided by a factor, fast ones stay, smoothly in between."""
    rates, factor = base.rates(), _factor(parameters)
    usual = _number(parameters, "original_max_position_embeddings", base.max_positions, low=1)
    slow = _number(parameters, "low_freq_factor", low=1e-6)
    fast = _number(parameters, "high_freq_factor", low=1e-6)
    if fast <= slow:
        raise CheckpointError(
            f"config: rope high_freq_factor {fast} must be greater than low_freq_factor {slow}"
        )
    wavelengths = 2 * math.pi / rates
    smooth = (usual / wavelengths - slow) / (fast - slow)
    between = (1 - smooth) * rates / factor + smooth * rates
    scaled = torch.where(wavelengths > usual / slow, rates / factor, between)
    return Rope(torch.where(wavelengths < usual / fast, rates, scaled))


def _yarn(parameters: Mapping[str, Any], base: _Base) -> Rope:
    """YaRN (Peng et al. 2023, section 3.2 to 3.4).

    Dimensions that turn often within the usual length stay, those that turn less than once are
    interpolated, and a ramp leads from the ones to the others.
    """
    usual = _number(parameters, "original_max_position_embeddings", base.max_positions, low=1)
    factor = _number(parameters, "factor", base.max_positions / usual, low=1e-6)

    # How sharp attention is, as a factor on queries and keys (section 3.4).
    def sharpness(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    own, of_all = (_number(parameters, name, 0.0, low=0) for name in ("mscale", "mscale_all_dim"))
    scaling = sharpness(own) / sharpness(of_all) if own and of_all else sharpness()
    scaling = _number(parameters, "attention_factor", scaling, low=0)

    # The dimension that turns so many times within the usual length (equation 17).
    def dimension(turns: float) -> float:
        return base.width * math.log(usual / (turns * 2 * math.pi)) / (2 * math.log(base.theta))

    first = dimension(_number(parameters, "beta_fast", 32.0, low=0) or 32.0)
    last = dimension(_number(parameters, "beta_slow", 1.0, low=0) or 1.0)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, base.width - 1)
    last = last + 0.001 if first == last else last
    ramp = torch.arange(base.width // 2, dtype=torch.float32)
    kept = 1 - ((ramp - first) / (last - first)).clamp(0, 1)
    powers = base.theta ** base.exponents()
    return Rope(1.0 / (factor * powers) * (1 - kept) + 1.0 / powers * kept, scaling)


_KINDS: dict[str, Callable[[Mapping[str, Any], _Base], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}


def _factor(parameters: Mapping[str, Any]) -> float:
    return _number(parameters, "factor", low=1e-6)


def _number(
    parameters: Mapping[str, Any],
    name: str,
    usual: float | None = None,
    *,
    low: float,
    high: float = 1e12,
) -> float:
    """A number of a `rope_parameters` entry; `usual` where it is missing or null."""
    value = parameters.get(name)
    if value is None and usual is not None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CheckpointError(
            f"config: {name} of the rotary positions must be a number from {low:g} to {high:g}, "
            f"not {str(value)[:100]!r}"
        )
    return value


def _lengths(positions: Tensor, layout: Layout) -> Tensor:
    """How long each token's sequence is up to the last of its tokens here, `[T]`."""
    ends = layout.cu_seqlens[1:].long() - 1
    counts = layout.cu_seqlens.diff().long()
    kept = counts > 0
    last = (positions[ends[kept]] + 1).repeat_interleave(counts[kept])
    return torch.cat([last, last.new_ones(len(positions) - len(last))])


def read_rope_parameters(
    values: Mapping[str, Any], theta: float, layer_types: Sequence[str] = ()
) -> dict[str, Any]:
    """The rotary positions of a `config.json`, in the shape of transformers 5.

    Older files have `rope_theta`, `rope_scaling` and `partial_rotary_factor` instead of
    `rope_parameters`.

    Args:
        values: the contents of `config.json`.
        theta: the family's usual `rope_theta`.
        layer_types: the kinds of layers that have rotary positions of their own, if any.

    Returns:
        `rope_type`, `rope_theta`, and what the kind needs; with `layer_types` such an entry for
        each of them.

    Raises:
        CheckpointError: an entry is not of the right kind.
    """
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(
            "config: rope_parameters (rope_scaling in older files) must be an object, "
            f"not {str(given)[:100]!r}"
        )
    usual: dict[str, Any] = {"rope_theta": values.get("rope_theta") or theta}
    if values.get("partial_rotary_factor") is not None:
        usual["partial_rotary_factor"] = values["partial_rotary_factor"]

    def entry(own: Any) -> dict[str, Any]:
        if not isinstance(own, Mapping):
            raise CheckpointError(
                f"config: rope_parameters must have an object for each kind of layer, "
                f"not {str(own)[:100]!r}"
            )
        own = {**usual, **{name: value for name, value in own.items() if value is not None}}
        kind = own.pop("type", "default")
        return {"rope_type": kind, **own}

    if not layer_types:
        return entry(given)
    nested = any(kind in given for kind in layer_types)
    return {kind: entry(given.get(kind, {}) if nested else given) for kind in layer_types}


def refuse_partial_rope(parameters: Mapping[str, Any], model_type: str) -> None:
    """Refuse the entry for a part of a head in a family whose class in transformers turns all.

    Args:
        parameters: from `read_rope_parameters`.
        model_type: of the family.

    Raises:
        CheckpointError: there is one.
    """
    part = parameters.get("partial_rotary_factor")
    if part is not None and part != 1:
        raise CheckpointError(
            f"config: partial_rotary_factor is {str(part)[:100]}",
            f"A {model_type} turns all dimensions of a head: 1.",
        )
