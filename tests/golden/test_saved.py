"""What pretune 0.1.0 (commit 3554670) saved by make_saved.py still opens and does the same.

Figures may differ by 1e-4, so that this holds on any CPU.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import pretune
from pretune.training.run_folder import RunFolder
from tests.golden import cases, compare_golden

HERE = Path(__file__).parent
SAVED = HERE / "saved"
STORED = json.loads((SAVED / "stored.json").read_text(encoding="utf-8"))
RUNS = [name for name in STORED if name != "corpus"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved things where tests may write; paths in recipes start from there."""
    folder = tmp_path_factory.mktemp("golden") / "saved"
    shutil.copytree(SAVED, folder, symlinks=True)
    return folder


@pytest.fixture
def here(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(copied)
    return copied


def assert_near(found: Any, stored: Any, where: str = "") -> None:
    """Equal, numbers but for the tolerance."""
    if isinstance(stored, dict):
        assert set(found) == set(stored), where
        for key in stored:
            assert_near(found[key], stored[key], f"{where}.{key}")
    elif isinstance(stored, list):
        assert len(found) == len(stored), where
        for i, (one, other) in enumerate(zip(found, stored, strict=True)):
            assert_near(one, other, f"{where}[{i}]")
    elif isinstance(stored, float):
        # Scores that all lie close together make correlations of their last digits.
        near = 2e-3 if where.endswith(("pearson", "spearman")) else TOLERANCE
        assert math.isclose(found, stored, rel_tol=near, abs_tol=near), where
    else:
        assert found == stored, where


def as_json(value: Any) -> Any:
    """As a JSON file would hold it."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_opens_and_answers_as_it_did(name: str, here: Path) -> None:
    run = cases.RUNS[name]
    model = pretune.load(f"runs/{name}")
    found: dict[str, Any] = {"metrics": as_json(pretune.evaluate(model, run.data).metrics)}
    asked = list(run.asked or run.ask)
    if asked:
        predictions = pretune.predict(model, asked)
        found["predictions"] = [as_json(one.to_dict()) for one in predictions]
    assert_near(found, STORED[name], name)


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_recipe_is_read_and_written_as_it_was(name: str, here: Path) -> None:
    path = Path("runs", name, "recipe.yaml")
    # But for keys that came later: `stratify` is off for runs that were without it.
    written = RunFolder(path.parent).recipe().to_yaml()
    later_keys = [
        *("  stratify: false\n", "  stop_on: {}\n", "teacher: null\n", "  layers: null\n"),
        *("  prefix: ''\n", "  early_stopping: false\n", "  max_written: null\n"),
        *("  min_written: 0\n", "  no_repeat_ngram: 0\n", "  never: null\n"),
        *(
            "  forced_end: false\n",
            "  renormalize: false\n",
            "  eval_at_start: false\n",
            "  errors: stop\n",
        ),
    ]
    for later in later_keys:
        written = written.replace(later, "")
    assert written == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_left_as_it_is(name: str, here: Path) -> None:
    stored = json.loads(Path("runs", name, "result.json").read_text(encoding="utf-8"))
    later = {"stopped_on": None, "warnings": [], "data": {}}
    assert as_json(pretune.resume(f"runs/{name}", quiet=True).to_dict()) == {**later, **stored}


def test_an_unfinished_run_goes_on_to_the_weights_it_would_have_had(here: Path) -> None:
    assert pretune.resume("runs/unfinished", quiet=True).steps == 10
    found = load_file("runs/unfinished/last/model.safetensors")
    stored = load_file("resumed.safetensors")
    assert set(found) == set(stored)
    for name, tensor in stored.items():
        torch.testing.assert_close(found[name], tensor, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_a_saved_corpus_can_be_trained_on(here: Path) -> None:
    words = cases.training("gpt-stored", "runs/again")
    result = pretune.train(words[1], words[2:], quiet=True)
    found = {"metrics": result.metrics, "tokens": result.tokens, "steps": result.steps}
    assert_near(as_json(found), STORED["corpus"], "corpus")


@pytest.mark.slow
def test_everything_is_as_the_golden_record_says(tmp_path: Path) -> None:
    """Commands and public functions do what they did when expected.json was made.

    Where processor, vector instructions, torch and how products round are what its header names,
    every SHA-256 of weights and every number must be the same; words may differ. Elsewhere a
    training differs in its last digits, and what follows from it too: there only the exit codes are
    compared, without those of runs that recover from trouble.
    """
    expected = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
    # The source that is imported here, be it installed or found by PYTHONPATH.
    paths = [str(Path(pretune.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, str(HERE / "make_golden.py"), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    actual = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    was, now = expected.pop("header"), actual.pop("header")
    same = ("processor", "instructions", "torch", "products")
    if any(was[key] != now[key] for key in same):
        assert exit_codes(actual) == exit_codes(expected)
        return
    differences = [
        str(difference)
        for difference in compare_golden.compare(expected, actual)
        if difference.kind != compare_golden.WORDS
    ]
    assert not differences, "\n".join(differences[:40])


def exit_codes(record: dict[str, Any]) -> dict[str, Any]:
    """How each command of a record ended, by its name."""
    return {
        name: entry["exit"]
        for section in ("commands", "mistakes")
        for name, entry in record[section].items()
        if "guard" not in name
    }
