"""What the docs once told people to import still works, and says where it is now."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

from pretune.moved import MODULES, NAMES

OLD_NAMES = [(package, name) for package, names in NAMES.items() for name in names]


@pytest.mark.parametrize(("package", "name"), OLD_NAMES)
def test_an_old_name_is_the_new_thing(package: str, name: str) -> None:
    module, _, attribute = NAMES[package][name].partition(":")
    with pytest.warns(DeprecationWarning, match=f"{package}.{name} is now {module}.{attribute}"):
        thing = getattr(importlib.import_module(package), name)
    assert thing is getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("old", [name for name in MODULES if "harness" not in name])
def test_an_old_module_is_the_new_one(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MODULES[old]}"):
        module = importlib.import_module(old)
    assert module is importlib.import_module(MODULES[old])
    assert module.__name__ == module.__spec__.name == MODULES[old]  # type: ignore[union-attr]


def test_the_documented_lines(tmp_path: object) -> None:
    """As the docs had them; one process, since the warnings depend on what is imported already."""
    lines = [
        "from pretune.corpus import Corpus, Settings, prepare",
        "from pretune.data import PackedBatch",
        "from pretune.hub import atomic_folder",
        "from pretune.hub.ngram import load_ngram, save_ngram",
        "from pretune.infer.chat import Conversation, Reranker",
        "from pretune.infer.examine import examine",
        "from pretune.report.compare import compare",
        "from pretune.tasks.bundle import grow_vocabulary, load, save",
        "from pretune.text import find_files, iter_texts, save_trained, take_sample",
        "from pretune.text import train_tokenizer",
    ]
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", "\n".join(lines)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "DeprecationWarning" in line]
    # Each warning names the line of the program that has the old import.
    assert {line.split(":")[1] for line in told} == {str(n) for n in range(1, len(lines) + 1)}


def test_the_old_harness_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pretune.infer.harness", "--help"], capture_output=True, text=True
    )
    # Where lm-evaluation-harness is not installed, the new module's own error shows that it ran.
    assert done.returncode == 0 or "this needs lm-evaluation-harness" in done.stderr, done.stderr


def test_what_never_was_is_an_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModuleNotFoundError, match=r"pretune\.hub\.nothing"):
            importlib.import_module("pretune.hub.nothing")
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            importlib.import_module("pretune.text").nothing  # noqa: B018
