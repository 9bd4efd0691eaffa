"""How far exports to ONNX are from the model: every family with every head, as a Markdown table.

python bench/export_parity.py

Models are small and random, and every weight counts (tests/export/models.py); the figures are those
of `pretune.export.onnx_check.compare` for opset 17.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import onnx

from pretune.export.onnx_check import OutputDifference, compare
from pretune.export.onnx_graph import GraphWriter
from pretune.export.onnx_models import write_graphs
from pretune.export.onnx_runtime import OnnxFile
from tests.export.models import HEADS, random_model


def difference(family: str, head: str, *, int8: bool) -> OutputDifference:
    """Export a model to a temporary folder, and compare."""
    exported, files = random_model(family, head), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, graph in write_graphs(exported, partial(GraphWriter, int8=int8)).items():
            path = Path(folder) / f"{name}.onnx"
            onnx.save(graph.model({}, "0"), path)
            files[name] = OnnxFile(path)
        return compare(exported, files)


def main() -> None:
    """Print the table."""
    print("| family | head | float32 | int8 | int8, smallest cosine |\n|---|---|---|---|---|")
    for family, head in HEADS:
        plain, small = (difference(family, head, int8=int8) for int8 in (False, True))
        print(
            f"| `{family}` | `{head}` | {plain.largest:.1e} | {small.largest:.3f} | "
            f"{small.cosine:.4f} |"
        )


if __name__ == "__main__":
    main()
