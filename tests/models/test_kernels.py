"""Kernels chosen by measurement: what is measured, remembered, and kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pretune.models import kernels
from pretune.models.kernels import Choice, ShapeClass, Timing
from pretune.models.ops import ROW_TILE, linear, padded_rows
from pretune.models.packed import packing
from pretune.models.products import MKL_PACKED, ONEDNN, ONEDNN_PACKED, PLAIN

LAYER = ShapeClass("forward", 128, 384, 1536)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and nothing known; gives the folder."""
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PRETUNE_MATMUL", raising=False)
    kernels.forget()
    yield tmp_path / "cache" / "kernels"
    monkeypatch.undo()
    kernels.forget()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets each candidate take as long as a test says, with more for some of the calls."""
    now = [0.0]

    def takes(disturbed: Iterable[float] = (), **seconds: float) -> None:
        more = itertools.chain(disturbed, itertools.repeat(0.0))

        def call(name: str) -> Tensor:
            now[0] += seconds[name] + next(more)
            return torch.ones(2)

        calls = {name: lambda name=name: call(name) for name in seconds}
        monkeypatch.setattr(kernels, "_candidates", lambda shape: calls)

    monkeypatch.setattr(kernels.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(kernels.time, "perf_counter", lambda: now[0])
    return takes


@pytest.mark.parametrize(
    ("mkl", "onednn", "chosen"),
    [(2.0, 1.0, ONEDNN), (1.0, 2.0, PLAIN), (1.0, 1.0, PLAIN), (1.05, 1.0, PLAIN)],
)
def test_another_kernel_must_be_clearly_faster(clock, mkl, onednn, chosen):
    clock(mkl=mkl, onednn=onednn)
    assert kernels.measure(LAYER) == Timing(chosen, {"mkl": 1e3 * mkl, "onednn": 1e3 * onednn})


def test_the_least_of_several_turns_counts(monkeypatch, clock):
    """Whatever else the machine did meanwhile, some turn of each was undisturbed."""
    # Three calls to get ready; then both are disturbed, then the one, then the other.
    clock([0, 0, 0, 5, 5, 0, 5, 5, 0, *[5] * 90], mkl=3.0, onednn=1.0)
    monkeypatch.setattr(kernels, "_SECONDS", 1000.0)
    assert kernels.measure(LAYER) == Timing(ONEDNN, {"mkl": 3000.0, "onednn": 1000.0})


def test_a_kernel_that_fails_or_is_wrong_is_no_candidate(monkeypatch):
    def broken() -> Tensor:
        raise RuntimeError("could not create a primitive")

    right = {"mkl": lambda: torch.ones(3), "onednn": broken, "other": lambda: torch.zeros(3)}
    monkeypatch.setattr(kernels, "_candidates", lambda shape: right)
    timing = kernels.measure(LAYER)
    assert timing.kernel == PLAIN
    assert set(timing.ms) == {"mkl"}


@pytest.mark.parametrize("kind", kernels.KINDS)
def test_what_is_timed_is_the_product_itself(kind):
    calls = kernels._candidates(ShapeClass(kind, 4, 128, 160))
    results = [call() for call in calls.values()]
    assert set(calls) == {PLAIN, ONEDNN}
    assert results[0].shape == ((128, 160) if kind == "weight" else (24, 160))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)


def test_measuring_draws_nothing_from_the_generator():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    kernels.measure(ShapeClass("forward", 1, 128, 128))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_choice_is_remembered(measuring, clock, monkeypatch):
    clock(mkl=2.0, onednn=1.0)
    assert kernels.choose("forward", 500, 384, 1536) == ONEDNN
    assert len(list(measuring.iterdir())) == 1
    # Another process reads what this one wrote.
    kernels.forget()
    monkeypatch.setattr(kernels, "measure", lambda shape: pytest.fail("measured again"))
    assert kernels.choose("forward", 128, 384, 1536) == ONEDNN
    assert kernels.current().summary() == "measured: oneDNN 1"


def test_what_another_process_wrote_first_holds(measuring, clock):
    clock(mkl=2.0, onednn=1.0)
    assert kernels.choose("forward", 500, 384, 384) == ONEDNN
    (file,) = measuring.iterdir()
    written = file.read_text(encoding="utf-8").replace("384 384", "384 1536")
    file.write_text(written, encoding="utf-8")
    clock(mkl=1.0, onednn=2.0)
    assert kernels.choose("forward", 500, 384, 1536) == ONEDNN
    assert set(json.loads(file.read_text(encoding="utf-8"))["classes"]) == {
        "forward 128 384 384",
        "forward 128 384 1536",
    }


@pytest.mark.parametrize("text", ["", "{}", '{"classes": {"forward": {}}}', "[1]"])
def test_a_damaged_cache_is_measured_again(measuring, clock, text):
    clock(mkl=2.0, onednn=1.0)
    kernels.choose("forward", 500, 384, 1536)
    (file,) = measuring.iterdir()
    file.write_text(text, encoding="utf-8")
    kernels.forget()
    assert kernels.choose("forward", 500, 384, 1536) == ONEDNN


def test_a_cache_that_cannot_be_written_is_no_error(measuring, clock, monkeypatch):
    monkeypatch.setenv("PRETUNE_CACHE", "/dev/null/cache")
    clock(mkl=2.0, onednn=1.0)
    assert kernels.choose("forward", 500, 384, 1536) == ONEDNN
    clock(mkl=1.0, onednn=2.0)
    assert kernels.choose("forward", 500, 384, 1536) == ONEDNN  # as this process knows


def test_other_threads_are_another_machine(measuring, clock):
    clock(mkl=2.0, onednn=1.0)
    kernels.choose("forward", 500, 384, 1536)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        clock(mkl=1.0, onednn=2.0)
        assert kernels.choose("forward", 500, 384, 1536) == PLAIN
    finally:
        torch.set_num_threads(before)
    assert kernels.choose("forward", 500, 384, 1536) == ONEDNN


@pytest.mark.parametrize(
    ("forced", "cache", "mode", "kernel"),
    [
        ("onednn", "off", "onednn", ONEDNN),
        ("mkl", "somewhere", "mkl", PLAIN),
        (None, "off", "default", PLAIN),
        ("auto", "off", "default", PLAIN),
    ],
)
def test_without_measurement(measuring, monkeypatch, forced, cache, mode, kernel):
    if forced is not None:
        monkeypatch.setenv("PRETUNE_MATMUL", forced)
    monkeypatch.setenv("PRETUNE_CACHE", cache)
    monkeypatch.setattr(kernels, "measure", lambda shape: pytest.fail("measured"))
    kernels.forget()
    assert kernels.mode() == mode
    assert kernels.choose("forward", 500, 384, 1536) == kernel


def test_small_weights_are_not_measured(measuring, monkeypatch):
    monkeypatch.setattr(kernels, "measure", lambda shape: pytest.fail("measured"))
    assert kernels.choose("forward", 500, 384, 2) == PLAIN


def test_what_a_run_keeps_to_is_closed(measuring, monkeypatch):
    monkeypatch.setattr(kernels, "measure", lambda shape: pytest.fail("measured"))
    choice = Choice("measured", {LAYER: ONEDNN})
    assert Choice.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice
    with kernels.kept(choice):
        assert kernels.choose("forward", 128, 384, 1536) == ONEDNN
        assert kernels.choose("forward", 127, 384, 1536) == PLAIN
        assert kernels.choose("input", 128, 384, 1536) == PLAIN
        assert padded_rows(300, 384, torch.device("cpu")) == 300
    with kernels.kept(Choice("measured", {ShapeClass("forward", 128, 384, 384): ONEDNN})):
        assert padded_rows(300, 384, torch.device("cpu")) == 5 * ROW_TILE


def test_prepared_weights_have_kernels_of_their_own():
    cpu, rows = torch.device("cpu"), 300
    for kernel, padded in ((ONEDNN_PACKED, 5 * ROW_TILE), (MKL_PACKED, rows), (PLAIN, rows)):
        packed = {ShapeClass("packed", 128, 384, 384): kernel}
        with kernels.kept(Choice("measured", packed)), torch.inference_mode():
            assert padded_rows(rows, 384, cpu) == rows
            with packing("float32"):
                assert padded_rows(rows, 384, cpu) == padded
            # Those of 8 bits are compiled for a number of rows, too; small ones are left alone.
            with packing("int8"):
                assert padded_rows(rows, 384, cpu) == 5 * ROW_TILE
                assert padded_rows(rows, 64, cpu) == rows


@pytest.mark.parametrize(
    "values", [{}, {"mode": "measured", "kernels": {"forward 1": "mkl"}, "machine": {}}, []]
)
def test_a_damaged_choice(values):
    with pytest.raises(ValueError, match=r"forward 1|not a choice|unpack"):
        Choice.from_dict(values)


def test_all_products_of_a_model(measuring, monkeypatch):
    asked: list[ShapeClass] = []

    def timing(shape: ShapeClass) -> Timing:
        asked.append(shape)
        return Timing(ONEDNN, {})

    monkeypatch.setattr(kernels, "measure", timing)
    model = nn.ModuleDict(
        {
            "tokens": nn.Embedding(1000, 128),
            "places": nn.Embedding(512, 128),
            "up": nn.Linear(128, 256),
            "head": nn.Linear(128, 2),
        }
    )
    chosen = kernels.prepare(model).kernels
    assert (
        set(asked)
        == set(chosen)
        == {
            *(ShapeClass("forward", rows, 128, size) for rows in (4, 128) for size in (256, 1000)),
            *(ShapeClass("input", 128, size, 128) for size in (256, 1000)),
            *(ShapeClass("weight", 128, 128, size) for size in (256, 1000)),
        }
    )


@pytest.mark.parametrize("mixture", range(8))
@pytest.mark.parametrize(("inner", "outer"), [(24, 40), (40, 24)])
def test_any_mixture_of_kernels_is_the_formula(monkeypatch, mixture, inner, outer):
    """Each product goes where its own class was chosen to go, and the gradients are right."""
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    sizes = {
        "forward": (inner, outer),
        "input": (outer, inner),
        "weight": (min(inner, outer), max(inner, outer)),
    }
    shapes = [ShapeClass(kind, 128, *sizes[kind]) for kind in kernels.KINDS]
    chosen = {shape: (PLAIN, ONEDNN)[mixture >> i & 1] for i, shape in enumerate(shapes)}
    used: list[str] = []
    plain = kernels.choose

    def choose(kind: str, *size: int) -> str:
        kernel = plain(kind, *size)
        used.append(f"{kind} {kernel}")
        return kernel

    monkeypatch.setattr(kernels, "choose", choose)
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(size, generator=generator).requires_grad_()
        for size in ((130, inner), (outer, inner), (outer,))
    ]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with kernels.kept(Choice("measured", chosen)):
        ours = linear(*leaves)
        got = torch.autograd.grad(ours.square().sum(), leaves)
    theirs = exact[0] @ exact[1].T + exact[2]
    wanted = torch.autograd.grad(theirs.square().sum(), exact)
    for mine, other in zip((ours, *got), (theirs, *wanted), strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-3)
    assert {f"{shape.kind} {kernel}" for shape, kernel in chosen.items()} == set(used)
