"""What all benches share: their common options, the machine they ran on, and a record of figures.

    --isa avx2     limit torch, oneDNN and MKL to AVX2, so that one machine stands for two
    --threads N    instead of as many as torch takes
    --ours         only pretune, without its peers: for comparing two versions of it
    --json FILE    write the figures there, too

onnxruntime has no such limit: it takes the instructions that it finds.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: What limits the instruction set of each library; read when the library is loaded.
LIMITS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
#: What makes a difference to matrix products, by the names in /proc/cpuinfo.
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "trl", "onnxruntime", "openvino")

#: What was measured, and the file that `--json` names.
_rows: list[dict[str, Any]] = []
_files: list[Path] = []


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read a bench's options and the common ones, and print the machine.

    With `--isa` the process starts itself again, as a library reads its limit when it is loaded.
    """
    parser.add_argument("--isa", choices=("native", *LIMITS), default="native")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--ours", action="store_true", help="only pretune, without its peers")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    wanted = dict(LIMITS.get(options.isa, {}))
    if options.threads:
        wanted["OMP_NUM_THREADS"] = str(options.threads)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})  # noqa: S606
    _files[:] = [options.json] if options.json else []
    print(shown(machine()), flush=True)
    return options


def machine() -> dict[str, Any]:
    """Processor, instruction set, threads, versions, and how kernels are chosen."""
    import torch

    info = _cpuinfo()
    flags = info.get("flags", "").split()
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "has": [flag for flag in FLAGS if flag in flags],
        "uses": torch.backends.cpu.get_cpu_capability(),
        "limits": {
            name: os.environ[name] for name in LIMITS["avx2"] if os.environ.get(name) is not None
        },
        "threads": torch.get_num_threads(),
        # Of all processes; what is not this one's makes figures worthless.
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "kernels": kernels(),
        "versions": versions(),
        "system": platform.platform(),
    }


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def versions() -> dict[str, str]:
    """Of Python, the packages that are there, and the libraries inside torch."""
    import torch

    known = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    libraries = {"MKL": r"Math Kernel Library Version (\S+)", "oneDNN": r"MKL-DNN v(\S+)"}
    for name, pattern in libraries.items():
        if match := re.search(pattern, torch.__config__.show()):
            known[name] = match[1]
    return known


def kernels() -> str:
    """How float32 products are computed now; as far as it is known before the first one."""
    forced = os.environ.get("PRETUNE_MATMUL")
    try:
        text = str(importlib.import_module("pretune.models.kernels").current().summary())
    except ImportError:  # an older version, which has a rule for all products
        ops = importlib.import_module("pretune.models.ops")
        text = "oneDNN" if ops.uses_onednn() else "MKL"
    return f"{text} (PRETUNE_MATMUL={forced})" if forced else text


def shown(about: Mapping[str, Any]) -> str:
    """A machine in a few lines."""
    limits = ", limited by " + ", ".join(about["limits"]) if about["limits"] else ""
    load = about["load"]
    lines = [
        f"{about['processor']}, {about['cores']} cores; has {', '.join(about['has'])}",
        f"uses {about['uses']}{limits}; {about['threads']} threads; kernels: {about['kernels']}",
        ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
    ]
    if load is not None and load > about["threads"]:
        lines.append(f"The machine is busy (load {load}): the figures are worth little.")
    return "\n".join(lines)


def record(
    what: str, unit: str, values: Mapping[str, Sequence[float]], ours: str, *, lower: bool = False
) -> None:
    """Keep figures for `--json`.

    Args:
        what: what was measured.
        unit: of the values.
        values: those of each round, by engine.
        ours: which engine is pretune.
        lower: whether less is better.
    """
    for engine, each in values.items():
        row = {"what": what, "unit": unit, "engine": engine, "ours": engine == ours}
        _rows.append({**row, "lower_is_better": lower, "values": [float(v) for v in each]})
    for file in _files:
        # Anew each time: of the kernels, more is known at the end than at the beginning.
        name, given = Path(sys.argv[0]).name, sys.argv[1:]
        text = {"bench": name, "arguments": given, "machine": machine(), "rows": _rows}
        file.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def times_better(ours: float, other: float, *, lower: bool) -> float:
    """How many times better ours is; 1: alike."""
    above, below = (other, ours) if lower else (ours, other)
    return above / below if below else float("inf")


def table(
    what: str,
    values: Mapping[str, Sequence[float]],
    ours: str,
    unit: str,
    *,
    lower: bool = False,
    digits: int = 0,
) -> str:
    """Medians, spans and ratios, for people; keeps them for `--json` too."""
    record(what, unit, values, ours, lower=lower)
    best = statistics.median(values[ours])
    lines = [f"{what:<40} {unit:>11} {'from - to':>19} {'pretune is':>11}"]
    for name, each in values.items():
        middle = statistics.median(each)
        span = f"{min(each):,.{digits}f} - {max(each):,.{digits}f}"
        ratio = "" if name == ours else f"{times_better(best, middle, lower=lower):.2f}x"
        lines.append(f"{name:<40} {middle:>11,.{digits}f} {span:>19} {ratio:>11}")
    return "\n".join(lines)
