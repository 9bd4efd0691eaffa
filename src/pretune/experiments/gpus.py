"""GPUs that a training is planned for: what they hold, compute and exchange.

The table is data, with the source of its figures: gpus.yaml.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pretune.errors import RunError, did_you_mean
from pretune.recipe import yaml12

TABLE = "gpus.yaml"
GIB = 2**30
#: The figures of a GPU, as a file and `--spec` name them, and what one of them is in bytes, FLOP/s
#: or bytes a second.
UNITS = {
    "memory": float(GIB),
    "bf16": 1e12,
    "float32": 1e12,
    "bandwidth": 1e9,
    "link": 1e9,
    "network": 1e9,
}


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, in the machine that it usually comes in."""

    name: str
    title: str
    memory: float  # bytes
    bf16: float | None  # dense FLOP/s; None: it has no bf16 products
    float32: float  # FLOP/s
    bandwidth: float  # bytes a second of its memory
    link: float  # bytes a second each way between the GPUs of a machine
    network: float  # bytes a second each way between machines, of a whole machine
    source: str
    known_as: tuple[str, ...] = ()  # parts of the names that drivers give it

    def peak(self, precision: str) -> float:
        """Return the FLOP/s of products in `bf16` or `float32`.

        Raises:
            RunError: it has no products in bf16.
        """
        peak = self.bf16 if precision == "bf16" else self.float32
        if peak is None:
            raise RunError(
                f"{self.name} has no bf16 products, which train.precision=auto takes on a GPU",
                "Set train.precision=float32, or choose another --gpu.",
            )
        return peak


@lru_cache(maxsize=1)
def known_gpus() -> Mapping[str, Gpu]:
    """Return the GPUs of the table by their names."""
    text = (files("pretune.experiments") / TABLE).read_text(encoding="utf-8")
    return _read(text, TABLE)


def find_gpu(name: str | None, file: Path | None = None, spec: Sequence[str] = ()) -> Gpu:
    """Look a GPU up.

    Args:
        name: of the table or of the file; None: the only one of the file.
        file: more GPUs, in the form of gpus.yaml.
        spec: figures to change, as `network=12.5`, in the units of the table.

    Raises:
        RunError: no such GPU, or a file or a figure that cannot be read.
    """
    known = dict(known_gpus())
    own: Mapping[str, Gpu] = {}
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(
                f"--device-file {file}: cannot be read ({reason})", "Name a YAML file."
            ) from None
        own = _read(text, str(file))
        known |= own
    if name is None:
        if len(own) != 1:
            raise RunError("--gpu: which one is it?", "Known: " + ", ".join(known) + ".")
        name = next(iter(own))
    if name not in known:
        raise RunError(
            f"--gpu: there is no '{name}' in the table",
            f"{did_you_mean(name, known)} Others: --device-file FILE, or --spec KEY=VALUE.",
        )
    return _changed(known[name], spec)


def called(name: str) -> Gpu | None:
    """Return the GPU of the table that a driver calls so; None if there is none."""
    for gpu in known_gpus().values():
        # Whole words: an L40S is no L4.
        if any(re.search(rf"\b{re.escape(part)}\b", name) for part in gpu.known_as):
            return gpu
    return None


def _read(text: str, origin: str) -> dict[str, Gpu]:
    table = yaml12.parse(text, origin)
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise RunError(f"{origin}: not a table of GPUs", "As in: my-gpu: {memory: 24, ...}")
    return {str(name): _gpu(str(name), entries, origin) for name, entries in table.items()}


def _gpu(name: str, entries: Mapping[str, Any], origin: str) -> Gpu:
    """Read an entry of a table."""
    allowed = (*UNITS, "title", "source", "known_as")
    for key in entries:
        if key not in allowed:
            raise RunError(f"{origin}: {name} has no '{key}'", did_you_mean(str(key), allowed))
    figures: dict[str, Any] = {}
    for key in UNITS:
        if key not in entries:
            raise RunError(f"{origin}: {name} lacks '{key}'", f"Add it, as in {key}: 24.")
        figures[key] = _figure(key, entries[key], f"{origin}: {name}.{key}")
    names = entries.get("known_as") or ()
    return Gpu(
        name=name,
        title=str(entries.get("title", name)),
        source=str(entries.get("source", origin)),
        known_as=tuple(map(str, names if isinstance(names, list) else (names,))),
        **figures,
    )


def _changed(gpu: Gpu, spec: Sequence[str]) -> Gpu:
    for text in spec:
        key, equals, value = text.partition("=")
        if not equals or key not in UNITS:
            hint = did_you_mean(key, UNITS)
            raise RunError(f"--spec {text}: should be KEY=VALUE, as network=12.5", hint)
        figure = _figure(key, yaml12.parse(value, f"--spec {key}"), f"--spec {key}")
        changes: dict[str, Any] = {key: figure, "source": f"{gpu.source}; --spec {text}"}
        gpu = replace(gpu, **changes)
    return gpu


def _figure(key: str, value: Any, place: str) -> float | None:
    """Turn a figure of the table into bytes, FLOP/s or bytes a second."""
    if value is None and key == "bf16":
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise RunError(
            f"{place}: should be a number above 0, not {yaml12.inline(value)}",
            "memory is in GiB, bf16 and float32 in 10^12 FLOP/s, the others in GB/s.",
        )
    return float(value) * UNITS[key]
