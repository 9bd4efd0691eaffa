"""FlashAttention for packed sequences on CUDA, trusted where its first use gives the equation.

The kernel takes the borders of sequences as they are (`cu_seqlens`), so that nothing is padded. It
is compiled for each type of number, size of head and kind of mask; wheels, drivers and GPUs differ
in which of these work. So the first use of each is compared with the equation on a tiny batch,
forward and backward. Where it differs or raises, a note says so and a plain kernel takes over.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pretune.data.batch import Layout
from pretune.errors import note

#: How far the numbers may be from the equation, as a share of the largest.
TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 5e-3}

#: What was seen of each kernel, by the arguments of `works`.
_seen: dict[tuple[object, ...], bool] = {}


def applies(q: Tensor) -> bool:
    """Whether the kernel is made for queries of this type on this device."""
    return q.is_cuda and q.dtype in TOLERANCES


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Layout,
    keys: Layout,
    causal: bool,
    scale: float | None,
    window: int | None,
    dropout_p: float,
) -> Tensor:
    """Attention within each sequence, `[queries.total, H, D]`; the arguments are `attention`'s."""
    q, k, v = q[: queries.total], k[: keys.total], v[: keys.total]
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    sizes = (queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen)
    # How far a query sees to the left and to the right; -1: without limit.
    left = -1 if window is None else window - 1
    right = 0 if causal else left
    if dropout_p == 0.0:
        from torch.nn.attention.varlen import varlen_attn

        mixed = varlen_attn(q, k, v, *sizes, window_size=(left, right), scale=scale)
        assert isinstance(mixed, Tensor)  # noqa: S101 - for the type checker: no aux was asked for
        return mixed
    # The public varlen_attn has no dropout. The kernel below it has, and is differentiable too.
    flash = torch.ops.aten._flash_attention_forward
    sides = {"window_size_left": left, "window_size_right": right} if window else {}
    options = {"scale": scale, **sides}
    dropped: Tensor = flash(q, k, v, *sizes, dropout_p, causal, False, **options)[0]
    return dropped


def works(
    device: torch.device, dtype: torch.dtype, size: int, causal: bool, windowed: bool, dropped: bool
) -> bool:
    """Whether the kernel gives the equation's numbers here; tried once, and told if it does not.

    Args:
        device: where it computes.
        dtype: of queries, keys and values.
        size: D, of a head.
        causal: whether a query sees no later key.
        windowed: whether it sees only keys that are near.
        dropped: with dropout of the weights.
    """
    asked = (device, dtype, size, causal, windowed, dropped)
    if asked not in _seen:
        problem = _problem(*asked)
        _seen[asked] = problem is None
        if problem is not None:
            kind = "".join(
                f", {name}"
                for name, there in (("causal", causal), ("window", windowed), ("dropout", dropped))
                if there
            )
            note(
                f"FlashAttention {problem} on {device} ({str(dtype).removeprefix('torch.')}, "
                f"heads of {size}{kind}); a plain kernel takes its place, and is slower"
            )
    return _seen[asked]


# While torch.compile traces a layer, this is asked once and its answer is a constant.
works._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _problem(
    device: torch.device, dtype: torch.dtype, size: int, causal: bool, windowed: bool, dropped: bool
) -> str | None:
    """What is wrong with the kernel, in a few words; None: nothing."""
    # The trial must leave no trace: neither in the random numbers of a run nor in its modes.
    gpus = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(gpus),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        try:
            return _compared(device, dtype, size, causal, 3 if windowed else None, dropped)
        except torch.OutOfMemoryError:  # says nothing about the kernel
            raise
        except (RuntimeError, NotImplementedError, ImportError, AttributeError, TypeError) as error:
            return f"fails ({str(error).strip().splitlines()[0][:120] or type(error).__name__})"


def _compared(
    device: torch.device,
    dtype: torch.dtype,
    size: int,
    causal: bool,
    window: int | None,
    dropped: bool,
) -> str | None:
    """Compare the kernel with the equation on a tiny batch, forward and backward."""
    # The first sequence has fewer queries than keys: the last query sees all of them.
    queries, keys = Layout.of((4, 1, 5), device), Layout.of((7, 1, 5), device)
    q, k, v = (
        _wave(layout.total, size, shift, device)
        for layout, shift in ((queries, 0.0), (keys, 1.0), (keys, 2.0))
    )
    if dropped:
        if size < keys.max_seqlen:
            return "is not tried with heads so small"
        # The value of each key is a unit vector, so that the outputs are the weights themselves,
        # and show which of them were dropped.
        places = torch.cat([torch.arange(n, device=device) for n in keys.lengths])
        v = torch.zeros_like(v)
        v[torch.arange(len(v), device=device), :, places] = 1.0
    half = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    exact = [x.detach().float().requires_grad_() for x in half]
    p = 0.5 if dropped else 0.0
    ours = flash_attention(half[0], half[1], half[2], queries, keys, causal, None, window, p)
    kept = ours.detach().float() if dropped else None
    theirs, share = _equation(exact[0], exact[1], exact[2], queries, keys, causal, window, kept)
    # Half of the weights should be left; nine in ten, or one, is no chance.
    if dropped and not 0.1 < share < 0.9:
        return f"drops {1 - share:.0%} of the weights instead of 50%"
    probe = _wave(queries.total, size, 3.0, device)
    pairs = [(ours, theirs)]
    pairs += zip(
        torch.autograd.grad((ours.float() * probe).sum(), half),
        torch.autograd.grad((theirs * probe).sum(), exact),
        strict=True,
    )
    for mine, right in pairs:
        limit = TOLERANCES[dtype] * max(1.0, float(right.detach().abs().max()))
        apart = float((mine.detach().float() - right.detach()).abs().max())
        if not apart <= limit:  # NaN is wrong too
            return f"is {apart:.2g} away from the equation"
    return None


def _wave(rows: int, size: int, shift: float, device: torch.device) -> Tensor:
    """`[rows, 2, size]` numbers in [-1, 1] without a random generator."""
    numbers = torch.arange(rows * 2 * size, device=device, dtype=torch.float32)
    return (numbers * 0.73 + shift).sin().view(rows, 2, size)


def _equation(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Layout,
    keys: Layout,
    causal: bool,
    window: int | None,
    kept: Tensor | None,
) -> tuple[Tensor, float]:
    """Attention in plain products, and the share of the weights that are left.

    Args:
        q: `[Tq, H, D]` float32.
        k: `[Tk, H, D]`.
        v: `[Tk, H, D]`.
        queries: the sequences of `q`.
        keys: the sequences of `k` and `v`.
        causal: whether a query sees no later key.
        window: how near keys have to be.
        kept: `[Tq, H, D]`: 0 in column j where the weight of key j was dropped with probability
            1/2; None: no weight was.
    """
    outputs, left, all_of_them = [], 0, 0
    for i, (asking, seen) in enumerate(zip(queries.lengths, keys.lengths, strict=True)):
        rows = slice(queries.starts[i], queries.starts[i] + asking)
        columns = slice(keys.starts[i], keys.starts[i] + seen)
        scores = torch.einsum("qhd,khd->hqk", q[rows], k[columns]) / math.sqrt(q.shape[2])
        distances = torch.arange(seen, device=q.device) - torch.arange(
            seen - asking, seen, device=q.device
        ).unsqueeze(1)
        hidden = distances > 0 if causal else torch.zeros_like(distances, dtype=torch.bool)
        if window is not None:
            hidden = hidden | (distances.abs() >= window)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        if kept is not None:
            stay = kept[rows, :, :seen].transpose(0, 1) != 0
            # What is too small for the type is no sign of dropout.
            counted = weights > 1e-3
            left += int((stay & counted).sum())
            all_of_them += int(counted.sum())
            weights = weights * stay * 2.0
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v[columns]))
    return torch.cat(outputs), left / max(all_of_them, 1)
