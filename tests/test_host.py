"""What differs between systems, also where a module of Linux is missing."""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pretune import host

#: What hides in a new process all that Windows does not have.
HIDE = (
    "import os, signal, sys; sys.modules.update(fcntl=None, resource=None); "
    "del os.sched_getaffinity, signal.SIGHUP; "
)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as it is where neither fcntl nor resource is."""
    with monkeypatch.context() as hidden:
        hidden.setitem(sys.modules, "fcntl", None)
        hidden.setitem(sys.modules, "resource", None)
        hidden.delattr(os, "sched_getaffinity")
        yield importlib.reload(host)
    importlib.reload(host)


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert host.take_lock(first)
        assert not host.take_lock(second)
    with (tmp_path / "lock").open("w") as third:
        assert host.take_lock(third)


def test_where_nothing_locks_nobody_is_kept_out(tmp_path: Path, elsewhere: ModuleType) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert elsewhere.take_lock(first)
        assert elsewhere.take_lock(second)


def test_windows_locks_a_byte_that_nobody_reads(
    tmp_path: Path, elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[int] = []

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor: int, how: int, count: int) -> None:
            place = os.lseek(descriptor, 0, os.SEEK_CUR)
            if place in locked:
                raise PermissionError(13, "locked")
            locked.append(place)

    monkeypatch.setattr(elsewhere, "msvcrt", Msvcrt)
    with (tmp_path / "lock").open("w") as file:
        file.write("a")
        assert elsewhere.take_lock(file)
        assert not elsewhere.take_lock(file)
        assert file.tell() == 1
    assert locked == [2**31 - 2]


def test_a_process_runs_until_it_ends() -> None:
    assert host.is_running(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not host.is_running(ended.pid)
    assert not host.is_running(2**70)


def test_peak_memory_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    told = host.peak_memory()
    monkeypatch.setattr(host, "_STATUS", Path("/nowhere"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert host.peak_memory() == peak * 1024
    assert told <= peak * 1024 * 1.1
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts in bytes
    assert host.peak_memory() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_cores_and_memory_without_the_modules(
    elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert elsewhere.usable_cores() == os.cpu_count()
    monkeypatch.setattr(elsewhere, "_STATUS", Path("/nowhere"))
    assert elsewhere.peak_memory() == 0


@pytest.mark.slow
def test_a_model_is_trained_and_asked_without_them(tmp_path: Path) -> None:
    table = tmp_path / "a.tsv"
    table.write_text("text\tlabel\n" + "a good film\tgood\na bad film\tbad\n" * 8)
    run = tmp_path / "run"
    commands = (
        ["train", str(table), "--model", "minilm", "train.max_steps=2", "--output", str(run)],
        ["train", "--resume", str(run)],
        ["predict", str(run), "--file", str(table), "--output", str(tmp_path / "out.csv")],
    )
    for command in commands:
        code = f"{HIDE} sys.argv[1:] = {command!r}; from pretune.cli.app import main; main()"
        call = [sys.executable, "-c", code]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 17
