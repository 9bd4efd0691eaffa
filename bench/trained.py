"""What the benches of finished models share: runs that are made once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pretune


def run(output: Path, name: str, recipe: str, settings: Mapping[str, Any]) -> Path:
    """Train, go on with what was interrupted, or do nothing; returns the folder."""
    folder = output / name
    if (folder / "recipe.yaml").is_file():
        pretune.resume(folder)
    else:
        began = time.perf_counter()
        settings = {key: placed(value, output) for key, value in settings.items()}
        pretune.train(recipe, {**settings, "output": str(folder)})
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return folder


def told(folder: Path, command: str, source: Path, *options: str) -> None:
    """Let a command write a folder, unless it is there."""
    if not folder.exists():
        words = [command, str(source), *options, "--output", str(folder)]
        done = subprocess.run([sys.executable, "-m", "pretune", *words], check=False)
        if done.returncode:
            raise SystemExit(f"pretune {' '.join(words)} failed")


def placed(value: Any, output: Path) -> Any:
    """The same with `{output}` replaced, however deep it lies."""
    if isinstance(value, str):
        return value.replace("{output}", str(output))
    if isinstance(value, list):
        return [placed(item, output) for item in value]
    if isinstance(value, dict):
        return {key: placed(item, output) for key, item in value.items()}
    return value
