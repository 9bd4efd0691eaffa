"""Which kernel computes a product on this CPU: measured once, remembered, and kept for a run.

No rule by the name of a processor's maker holds on all of them, so that the candidates are timed:
for each class of shape once, in some milliseconds, when it is first used. What is measured stands
in the cache, by processor, instruction sets, torch version and number of threads:

    $PRETUNE_CACHE/kernels/HASH.json

Kernels round differently in the last bits. A training run therefore chooses for all of its shapes
when it begins, writes that down in its folder, and never measures again (`kept`). Where there is no
cache to remember a choice (`PRETUNE_CACHE=off`), everything goes to PyTorch's own kernel, so that
two processes agree. `PRETUNE_MATMUL=onednn|mkl` forces one kernel for everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from pretune.models.large_pages import in_large_pages
from pretune.models.products import (
    BATCHED,
    INT8,
    INT_FLOAT,
    INT_MM,
    MKL_PACKED,
    ONEDNN,
    ONEDNN_PACKED,
    PLAIN,
    QLINEAR,
    TRANSPOSED,
    has_onednn,
    multiplier,
    pack,
    product,
    scaled_int8_product,
)
from pretune.storage.cache_folder import cache_folder

#: The products of a layer: its map, and the gradients of its inputs and of its weight.
KINDS = ("forward", "input", "weight")
#: Products of weights that stay as they are (`packed`), in float32 and in 8 bits.
INFERENCE_KINDS = ("packed", "int8")
#: Products of fewer rows than `MANY` with weights that nothing is made of, as of the next tokens.
FEW = "few"
#: The kernels for each kind of product; the first one, unless another is clearly faster.
CANDIDATES = {
    **dict.fromkeys(KINDS, (PLAIN, ONEDNN)),
    "packed": (PLAIN, ONEDNN, MKL_PACKED, ONEDNN_PACKED, TRANSPOSED),
    "int8": INT8,
    FEW: (PLAIN, BATCHED),
}
#: The smallest number of rows (tokens) of each class: one text's last token, one text, a batch.
ROWS = (1, 4, 128)
#: Another kernel may be the fastest for as many rows or more, where weights stay as they are.
MANY = 16
#: The rows that stand for each of them when it is timed.
_TIMED_ROWS = {1: 1, 4: 24, 128: 256}
#: Smaller weights are not worth a choice: what counts is the time of the call.
SMALLEST = 128 * 128
#: A product is timed with fewer rows where it has more FLOPs.
_TIMED_FLOPS = 3e8
#: A whole vocabulary is cut to this size.
_TIMED_BYTES = 8e6
#: For few rows the weights of several layers are multiplied in turns, as in a model: together about
#: this large, on more pages than a processor knows the addresses of, and at most so many. With
#: fewer, kernels look fast that wait for addresses in a whole model.
_TURNS_BYTES, _TURNS = 32e6, 16
#: Each candidate is timed until all together took so many seconds, at least and at most so often.
_SECONDS, _FEWEST, _LARGEST = 0.02, 3, 9
#: Another kernel than PyTorch's own must be this much faster. For few rows of a packed weight it
#: is PyTorch's own with the weight transposed, whose large pages make more of a difference in a
#: whole model than among the few weights that are timed.
MARGIN = 1.08

#: How kernels are chosen: one for all by `PRETUNE_MATMUL`, PyTorch's own as nothing can be
#: remembered, or by measurement.
DEFAULT, MEASURED = "default", "measured"
FORCED = (PLAIN, ONEDNN)
#: The kernels as people know them.
KERNEL_NAMES = {
    PLAIN: "PyTorch",
    ONEDNN: "oneDNN",
    MKL_PACKED: "PyTorch, packed",
    ONEDNN_PACKED: "oneDNN, packed",
    TRANSPOSED: "PyTorch, transposed",
    BATCHED: "PyTorch, in parts",
    QLINEAR: "oneDNN, 8 bits",
    INT_MM: "PyTorch, 8 bits",
    INT_FLOAT: "PyTorch, 8 bits as floats",
}


class ShapeClass(NamedTuple):
    """Products that one choice is made for.

    Attributes:
        kind: of `KINDS` or `INFERENCE_KINDS`.
        rows: of `ROWS`, the smallest number of tokens.
        inner: the length of the sums; for `weight` the smaller size of the result.
        outer: the last size of the result; for `weight` the larger one.
    """

    kind: str
    rows: int
    inner: int
    outer: int

    def __str__(self) -> str:
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote; raises ValueError for anything else."""
        kind, rows, inner, outer = text.split(" ")
        return cls(kind, int(rows), int(inner), int(outer))


@dataclass(frozen=True)
class Timing:
    """The kernel for a class of shapes, and the milliseconds of each candidate."""

    kernel: str
    ms: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """What a run keeps to: how kernels are chosen, and the kernel of each class."""

    mode: str = DEFAULT
    kernels: dict[ShapeClass, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)  # where they were measured

    def summary(self) -> str:
        """The kernels in a few words; with how many classes of shape go to each."""
        if self.mode != MEASURED:
            return KERNEL_NAMES[ONEDNN if self.mode == ONEDNN else PLAIN]
        counts = Counter(self.kernels.values())
        shown = [f"{KERNEL_NAMES[kernel]} {count}" for kernel, count in sorted(counts.items())]
        return f"measured: {', '.join(shown) or 'nothing yet'}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        kernels = {str(shape): kernel for shape, kernel in sorted(self.kernels.items())}
        return {"mode": self.mode, "kernels": kernels, "machine": self.machine}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a choice from what `to_dict` gave; raises ValueError for anything else."""
        try:
            kernels = {ShapeClass.parse(key): str(v) for key, v in values["kernels"].items()}
            if {*kernels.values()} - {*KERNEL_NAMES}:
                raise ValueError("an unknown kernel")
            return cls(str(values["mode"]), kernels, dict(values["machine"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a choice of kernels: {error!r}") from None


#: What a run keeps to while it trains: the last one holds.
_kept: list[Choice] = []
#: What is known on this machine, by the number of threads.
_known: dict[int, dict[ShapeClass, Timing]] = {}
_lock = threading.RLock()


@lru_cache(maxsize=1)
def mode() -> str:
    """How kernels are chosen by the environment: `mkl`, `onednn`, `default` or `measured`."""
    forced = os.environ.get("PRETUNE_MATMUL", "auto")
    if not has_onednn():
        return PLAIN
    if forced in FORCED:
        return forced
    return DEFAULT if cache_folder() is None else MEASURED


def forget() -> None:
    """Read the environment and the cache anew."""
    mode.cache_clear()
    _known.clear()


def current_mode() -> str:
    """How kernels are chosen now: as the run keeps to, else as the environment asks."""
    return _kept[-1].mode if _kept else mode()


def current() -> Choice:
    """What the run keeps to, else what is known on this machine."""
    if _kept:
        return _kept[-1]
    known = measured() if mode() == MEASURED else {}
    return Choice(mode(), {shape: entry.kernel for shape, entry in known.items()}, machine())


def standing() -> object:
    """What choices come from now; the same object as long as they stay what they are."""
    if _kept:
        return _kept[-1]
    return _known.get(torch.get_num_threads()) if mode() == MEASURED else mode()


def choose(kind: str, rows: int, inner: int, outer: int) -> str:
    """The kernel for a product; see `ShapeClass`."""
    how, usual = current_mode(), CANDIDATES[kind][0]
    if how != MEASURED:
        return how if how in CANDIDATES[kind] else usual
    shape = _class_of(kind, rows, inner, outer)
    if shape is None:
        return usual
    if _kept:
        return _kept[-1].kernels.get(shape, usual)
    return timing(shape).kernel


def _class_of(kind: str, rows: int, inner: int, outer: int) -> ShapeClass | None:
    if inner * outer < SMALLEST:
        return None
    return ShapeClass(kind, max(n for n in ROWS if n <= max(rows, 1)), inner, outer)


def bucket(rows: int) -> int:
    """The smallest of the numbers of rows that the same products are prepared for."""
    return max(n for n in (*ROWS, MANY) if n <= max(rows, 1))


@contextmanager
def kept(choice: Choice) -> Iterator[None]:
    """Context in which this choice holds and nothing is measured; other shapes go to `PLAIN`."""
    _kept.append(choice)
    try:
        yield
    finally:
        _kept.pop()


def prepare(model: nn.Module) -> Choice:
    """Choose the kernels for all products of a model; what is not known yet is measured."""
    kernels: dict[ShapeClass, str] = {}
    if mode() == MEASURED:
        kernels = {shape: timing(shape).kernel for shape in shapes_of(model)}
    return Choice(mode(), kernels, machine())


def shapes_of(model: nn.Module, kinds: Sequence[str] = KINDS) -> list[ShapeClass]:
    """The classes of shape in a model's products; it may lie on the meta device.

    For few tokens there are no gradients.
    """
    # All matrices but the tables of embeddings; the largest of these may be the output layer.
    tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    output = max(tables, key=len, default=None)
    others = {id(table) for table in tables if table is not output}
    weights = [p for p in model.parameters() if p.dim() == 2 and id(p) not in others]
    sizes = sorted({(weight.shape[1], weight.shape[0]) for weight in weights})
    shapes: dict[ShapeClass, None] = {}
    for kind in kinds:
        for inner, outer in sizes:
            # The gradient of the inputs sums over the outputs; that of the weight over the tokens.
            order = (outer, inner) if kind == "input" else (inner, outer)
            if kind == "weight":
                order = (min(order), max(order))
            for rows in ROWS[-1:] if kind in ("input", "weight") else ROWS[1:]:
                shape = _class_of(kind, rows, *order)
                if shape is not None:
                    shapes[shape] = None
    return list(shapes)


def timing(shape: ShapeClass) -> Timing:
    """The times of a class of shapes on this machine: known, in the cache, or measured now."""
    threads = torch.get_num_threads()
    known = _known.get(threads)
    if known is None:
        with _lock:
            known = _known.setdefault(threads, _read(threads))
    if shape not in known:
        with _lock:
            if shape not in known:
                known[shape] = measure(shape)
                _remember(threads, known)
    return known[shape]


def measured() -> dict[ShapeClass, Timing]:
    """All that is known for this number of threads, in the cache or since this process began."""
    threads = torch.get_num_threads()
    with _lock:
        return dict(_known.setdefault(threads, _read(threads)))


# Measuring


def measure(shape: ShapeClass) -> Timing:
    """Time the candidates in turns; the least time of each counts."""
    # The processor's time, where one thread does it all: others on the machine do not show in it.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        calls = _checked(_candidates(shape))
        best = dict.fromkeys(calls, float("inf"))
        began = time.perf_counter()
        for turn in range(_LARGEST):
            if turn >= _FEWEST and time.perf_counter() - began > _SECONDS:
                break
            for name, call in calls.items():
                start = clock()
                call()
                best[name] = min(best[name], clock() - start)
    # The usual one, unless another is clearly faster.
    fastest, usual = min(best, key=lambda name: best[name]), next(iter(best))
    if shape.kind == "packed" and shape.rows < ROWS[2] and TRANSPOSED in best:
        usual = TRANSPOSED
    kernel = fastest if best[fastest] * MARGIN < best[usual] else usual
    return Timing(kernel, {name: round(1e3 * seconds, 4) for name, seconds in best.items()})


def _checked(calls: Mapping[str, Callable[[], Tensor]]) -> dict[str, Callable[[], Tensor]]:
    """Those of the candidates that work here; this also lets each of them get ready."""
    right = next(iter(calls.values()))()
    working = {}
    for name, call in calls.items():
        with suppress(RuntimeError, NotImplementedError):
            if torch.allclose(call(), right, rtol=1e-3, atol=1e-3 * float(right.abs().max())):
                working[name] = call
    return working


def _candidates(shape: ShapeClass) -> dict[str, Callable[[], Tensor]]:
    """For each kernel a call that multiplies several weights of this shape in turns."""
    # As large as it has to be, and no larger.
    rows, inner, outer = _TIMED_ROWS[shape.rows], shape.inner, shape.outer
    rows = min(rows, MANY // 2) if shape.kind == FEW else rows
    while 4 * inner * outer > _TIMED_BYTES and max(inner, outer) > 4096:
        inner, outer = (inner // 2, outer) if inner > outer else (inner, outer // 2)
    while 2 * rows * inner * outer > _TIMED_FLOPS and rows > 64:
        rows //= 2
    copies = max(1, min(_TURNS, round(_TURNS_BYTES / (4 * inner * outer)))) if rows <= 64 else 1
    # Its own generator: the numbers of a run stay what they are.
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    if shape.kind == "int8":
        return _int8_candidates(rows, inner, outer, copies)
    if shape.kind == "weight":
        sides = [(draw(rows, inner).t(), draw(rows, outer).t()) for _ in range(copies)]
    else:
        weights = [draw(outer, inner)]
        weights += [weights[0].clone() for _ in range(copies - 1)]
        if shape.kind == "input":
            weights = [weight.t().contiguous().t() for weight in weights]
        sides = [(draw(rows, inner), weight) for weight in weights]

    def in_turns(kernel: str) -> Tensor:
        return [product(kernel, *pair) for pair in sides][-1]

    plain: dict[str, Callable[[], Tensor]]
    if shape.kind == FEW:
        # They lie as those of a model that writes.
        sides = [(x, in_large_pages(weight)) for x, weight in sides]
    plain = {kernel: partial(in_turns, kernel) for kernel in FORCED}
    if shape.kind not in ("packed", FEW):
        return plain

    def packed(kernel: str) -> Callable[[], Tensor]:
        ready = [(x, multiplier(kernel, pack(kernel, w), w, None)) for x, w in sides]
        return lambda: [multiply(x) for x, multiply in ready][-1]

    if shape.kind == FEW:
        return _ready(packed, CANDIDATES[FEW])
    return {**plain, **_ready(packed, CANDIDATES["packed"][2:])}


def _ready(
    make: Callable[[str], Callable[[], Tensor]], kernels: Iterable[str]
) -> dict[str, Callable[[], Tensor]]:
    """The calls of the kernels whose weights can be packed here."""
    calls = {}
    for kernel in kernels:
        with suppress(RuntimeError, NotImplementedError, AttributeError):
            calls[kernel] = make(kernel)
    return calls


def _int8_candidates(
    rows: int, inner: int, outer: int, copies: int
) -> dict[str, Callable[[], Tensor]]:
    """For each kernel of integers a call that multiplies several weights in turns."""
    # Seven bits, which no kernel overflows with.
    draw = partial(torch.randint, -63, 64, generator=torch.Generator().manual_seed(0))
    x = draw((rows, inner)).float()
    weights = [draw((outer, inner)).to(torch.int8)]
    weights += [weights[0].clone() for _ in range(copies - 1)]
    scale = torch.ones(outer)

    def ready(kernel: str) -> Callable[[], Tensor]:
        forms = [pack(kernel, weight) for weight in weights]
        return lambda: [scaled_int8_product(kernel, x, form, scale) for form in forms][-1]

    return _ready(ready, INT8)


# Remembering


@lru_cache(maxsize=1)
def machine() -> dict[str, Any]:
    """What times depend on, beside the number of threads: processor, instruction sets, torch."""
    names = ("model name", "vendor_id", "cpu family", "model", "stepping", "CPU part", "flags")
    described = {}
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                described[name.strip()] = value.strip()
    # Long, and told apart by its hash.
    flags = hashlib.sha256(described.pop("flags", "").encode()).hexdigest()[:16]
    limits = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
    return {
        "processor": described or platform.processor() or platform.machine(),
        "flags": flags,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "limits": {name: os.environ[name] for name in limits if name in os.environ},
        "torch": torch.__version__,
    }


def processor() -> str:
    """The name of the processor, with the instruction set that torch uses."""
    described = machine()
    name = described["processor"]
    name = name if isinstance(name, str) else name.get("model name", platform.machine())
    return f"{name}, {described['instructions']}"


def _path(threads: int) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    key = json.dumps([machine(), threads, CANDIDATES, _TURNS_BYTES], sort_keys=True)
    return folder / "kernels" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(threads: int) -> dict[ShapeClass, Timing]:
    """What the cache knows; nothing where there is none, or where it is damaged."""
    path = _path(threads)
    if path is None:
        return {}
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
        return {
            ShapeClass.parse(key): Timing(str(entry["kernel"]), dict(entry["ms"]))
            for key, entry in classes.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _remember(threads: int, known: dict[ShapeClass, Timing]) -> None:
    """Add to the cache; what another process wrote there first holds, so that all agree."""
    path = _path(threads)
    if path is None:
        return
    known.update(_read(threads))
    classes = {
        str(shape): {"kernel": entry.kernel, "ms": entry.ms}
        for shape, entry in sorted(known.items())
    }
    text = json.dumps({"machine": machine(), "threads": threads, "classes": classes}, indent=1)
    # A cache that cannot be written is none: this process knows what it measured.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
