"""What commands import: only what they use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretune.bundle.bundle import save
from pretune.cli.app import SPINS, wait_briefly
from tests.tasks.every_task import CASES

#: Runs a command and prints the names of all modules that are imported then.
DRIVER = """
import json, sys
from pretune.cli.app import main
try:
    main()
except SystemExit:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
#: Rooms and packages that answering a text does without.
NOT_FOR_ANSWERS = (
    "pretune.api",
    "pretune.checkpoints.peft",
    "pretune.checkpoints.pickle",
    "pretune.checkpoints.tensorflow",
    "pretune.evaluation",
    "pretune.experiments",
    "pretune.inspection",
    "pretune.models.classics",
    "pretune.models.gpt2",
    "pretune.models.transformer",
    "pretune.publishing",
    "pretune.recipe",
    "pretune.tasks.dialogue",
    "pretune.tasks.masked_lm",
    "pretune.tasks.tagging",
    "pretune.tasks.translation",
    "pretune.training",
    *("accelerate", "datasets", "datasketch", "huggingface_hub", "jinja2", "matplotlib", "mlflow"),
    *("optuna", "pandas", "pyarrow", "sacrebleu", "scipy", "sklearn", "tensorboard"),
    *("torch._dynamo", "torch._inductor", "transformers", "yaml"),
)


def ran(*arguments: Any) -> str:
    """What a command writes to standard error, with the settings of libgomp when it is loaded."""
    rest = {name: value for name, value in os.environ.items() if name[:4] not in ("OMP_", "GOMP")}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**rest, "OMP_DISPLAY_ENV": "verbose"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def imported(*arguments: Any) -> list[str]:
    modules: list[str] = json.loads(ran(*arguments).splitlines()[-1])
    return modules


def within(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    return [name for name in modules if f"{name}.".startswith(tuple(f"{p}." for p in packages))]


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("train", "--help"), ("serve", "--help")]
)
def test_help(arguments: tuple[str, ...]) -> None:
    modules = imported(*arguments)
    assert not within(modules, ("torch", "numpy", "tokenizers", *NOT_FOR_ANSWERS))
    # The package, its version, what has moved, errors, the language, the application, short forms;
    # of a command its module, options and what completes them.
    assert len(within(modules, ("pretune",))) <= 13
    assert "pretune.text.translation" not in modules


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, str(SPINS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_sleep_soon_unless_a_person_says_how(
    given: dict[str, str], spins: str | None
) -> None:
    environment = {"PATH": "/bin", **given}
    wait_briefly(environment)
    assert environment.get("GOMP_SPINCOUNT") == spins
    assert {**environment, **given} == environment


def test_one_text(tiny_folder: Path, tmp_path: Path) -> None:
    save(CASES["classify"].bundle(tiny_folder, tmp_path), tmp_path)
    written = ran("predict", tmp_path, "a good film", "--device", "cpu")
    # It was set before torch loaded libgomp, which reads it only then.
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in written
    modules: list[str] = json.loads(written.splitlines()[-1])
    assert not within(modules, NOT_FOR_ANSWERS)
    assert len(within(modules, ("pretune",))) <= 123
