"""Small runs to publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPO = "me/films"
#: What text from data may do to Markdown, HTML and YAML.
NASTY = ("bad | <script>alert(1)</script>", "good\n---\n# a heading [x](https://evil.example)")


def write_data(path: Path, labels: tuple[str, ...] = NASTY) -> Path:
    rows = [
        {"text": f"{'the ' * (i % 4)}{('bad', 'good')[n]} film", "label": label}
        for i in range(20)
        for n, label in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def small_recipe(model: Path, data: Path, output: Path | str, **data_section: Any) -> Any:
    return {
        "description": "Good or bad? <b>Films</b>",
        "task": {"name": "classify", "max_length": 16},
        "model": {"from": str(model)},
        "data": {"train": str(data), "validation": 0.2, **data_section},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"},
        "output": str(output),
    }
