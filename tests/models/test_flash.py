"""A CUDA kernel is compared with the equation at its first use; here with stand-ins on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pretune.data.batch import Layout
from pretune.errors import Note
from pretune.models import flash
from pretune.models.attention import attention, attention_reference

KINDS = [
    {"causal": causal, "windowed": windowed, "dropped": dropped}
    for causal in (False, True)
    for windowed in (False, True)
    for dropped in (False, True)
]
CPU = torch.device("cpu")


def right(
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
    """What the kernel should do, in the plain way; its dropout is that of whole keys' weights."""
    exact = [x.float() for x in (q, k, v)]
    rule: dict[str, Any] = {"causal": causal, "scale": scale, "window": window}
    if not dropout_p:
        return attention_reference(*exact, queries, keys, **rule).to(q.dtype)
    units = torch.eye(q.shape[2])[: keys.max_seqlen]
    places = torch.cat([torch.arange(n) for n in keys.lengths])
    weights = attention_reference(
        *exact[:2], units[places].unsqueeze(1).expand(-1, q.shape[1], -1), queries, keys, **rule
    )
    weights = torch.nn.functional.dropout(weights, dropout_p)
    outputs = []
    for i, count in enumerate(queries.lengths):
        rows = slice(queries.starts[i], queries.starts[i] + count)
        columns = slice(keys.starts[i], keys.starts[i] + keys.lengths[i])
        own = weights[rows, :, : keys.lengths[i]]
        outputs.append(torch.einsum("qhk,khd->qhd", own, exact[2][columns]))
    return torch.cat(outputs).to(q.dtype)


def changed(**changes: Any) -> Callable[..., Tensor]:
    """The right kernel, told something else than it is asked."""
    names = ("queries", "keys", "causal", "scale", "window", "dropout_p")

    def kernel(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        return right(q, k, v, **{**dict(zip(names, rest, strict=True)), **changes})

    return kernel


def no_gradient_to_keys(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return right(q, k.detach() + 0 * k, v, *rest)


def not_numbers(q: Tensor, *rest: Any) -> Tensor:
    return right(q, *rest) * float("nan")


def not_there(*arguments: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nException raised from")


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_seen", {})
    monkeypatch.setattr(flash, "applies", lambda q: q.dtype == torch.bfloat16)
    torch.manual_seed(0)


def use(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor]) -> None:
    monkeypatch.setattr(flash, "flash_attention", kernel)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_kernel_that_is_right_is_trusted(
    kind: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, right)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        assert flash.works(CPU, torch.bfloat16, 16, **kind)


@pytest.mark.parametrize(
    ("kernel", "kind", "told"),
    [
        (changed(scale=1.0), {}, "away from the equation"),
        (changed(causal=False), {"causal": True}, "away from the equation"),
        (changed(window=None), {"windowed": True}, "away from the equation"),
        (changed(window=4), {"windowed": True, "causal": True}, "away from the equation"),
        (changed(dropout_p=0.0), {"dropped": True}, "drops 0% of the weights instead of 50%"),
        (changed(dropout_p=0.96), {"dropped": True}, "% of the weights instead of 50%"),
        (changed(dropout_p=0.3), {"dropped": True}, "away from the equation"),
        (no_gradient_to_keys, {}, "away from the equation"),
        (no_gradient_to_keys, {"dropped": True}, "away from the equation"),
        (not_numbers, {}, "nan away from the equation"),
        (not_there, {}, r"fails \(FlashAttention only supports Ampere GPUs or newer.\) on cpu"),
    ],
)
def test_a_kernel_that_is_wrong_is_left_out_and_said_once(
    kernel: Callable[..., Tensor],
    kind: dict[str, bool],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, kernel)
    asked = {"causal": False, "windowed": False, "dropped": False, **kind}
    with pytest.warns(Note, match=told) as notes:
        answers = [flash.works(CPU, torch.bfloat16, 16, **asked) for _ in range(2)]
    assert answers == [False, False]
    assert len(notes) == 1
    assert "a plain kernel takes its place" in str(notes[0].message)


@pytest.mark.parametrize("kernel", [right, not_there])
def test_attention_is_the_equation_either_way(
    kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is to be differentiated, and the trial leaves no trace."""
    use(monkeypatch, kernel)
    layout = Layout.of([3, 5])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(8, 2, 8, generator=generator).bfloat16() for _ in range(3))
    before = torch.get_rng_state()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", Note)
        ours = attention(q, k, v, layout, layout, causal=True)
    assert torch.equal(torch.get_rng_state(), before)
    theirs = attention_reference(q.float(), k.float(), v.float(), layout, layout, causal=True)
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=2e-2)
    assert list(flash._seen.values()) == [kernel is right]


def test_a_full_memory_says_nothing_about_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    use(monkeypatch, full)
    with pytest.raises(torch.OutOfMemoryError):
        flash.works(CPU, torch.bfloat16, 16, causal=False, windowed=False, dropped=False)
    assert flash._seen == {}


@pytest.mark.slow
def test_a_compiled_layer_asks_once_while_it_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, right)
    x = torch.randn(8, 2, 8).bfloat16()

    def layer(x: Tensor) -> Tensor:
        kind = {"causal": False, "windowed": False, "dropped": False}
        return x * 2 if flash.works(x.device, x.dtype, x.shape[-1], **kind) else x

    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x * 2)
    assert len(flash._seen) == 1
