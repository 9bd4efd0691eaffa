"""Old state or new state, never a mixture: not after an error, not after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretune.checkpoints import atomic_io as files
from pretune.checkpoints.atomic_io import atomic_file, atomic_folder, atomic_text, point


class Interrupted(BaseException):
    """As Ctrl-C: not an Exception."""


class TestText:
    def test_new_file(self, tmp_path):
        atomic_text(tmp_path / "a.txt", "好\n")
        assert (tmp_path / "a.txt").read_bytes() == "好\n".encode()

    def test_replaces(self, tmp_path):
        (tmp_path / "a.txt").write_text("a much longer old text")
        atomic_text(tmp_path / "a.txt", "new")
        assert (tmp_path / "a.txt").read_text() == "new"

    def test_leaves_nothing_beside(self, tmp_path):
        atomic_text(tmp_path / "a.txt", "new")
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]

    @pytest.mark.parametrize("name", ["fsync", "replace"])
    def test_failure_leaves_the_old_text_alone(self, tmp_path, monkeypatch, name):
        (tmp_path / "a.txt").write_text("old")

        def fail(*args):
            raise Interrupted

        monkeypatch.setattr(files.os, name, fail)
        with pytest.raises(Interrupted):
            atomic_text(tmp_path / "a.txt", "new")
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]

    def test_text_that_cannot_be_written_leaves_nothing(self, tmp_path):
        with pytest.raises(UnicodeEncodeError):
            atomic_text(tmp_path / "a.txt", "\ud800")
        assert list(tmp_path.iterdir()) == []


class TestFolder:
    def test_appears_with_all_that_was_put_in(self, tmp_path):
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "a").mkdir()
            (folder / "a" / "b.txt").write_text("b")
        assert (tmp_path / "run" / "a" / "b.txt").read_text() == "b"

    def test_is_not_there_before_the_end(self, tmp_path):
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "a.txt").write_text("a")
            assert not (tmp_path / "run").exists()

    def test_leaves_nothing_beside(self, tmp_path):
        with atomic_folder(tmp_path / "run"):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_name_as_text(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with atomic_folder("run") as folder:
            (folder / "a.txt").write_text("a")
        assert (tmp_path / "run" / "a.txt").read_text() == "a"

    def test_makes_its_parents(self, tmp_path):
        with atomic_folder(tmp_path / "a" / "b" / "run"):
            pass
        assert (tmp_path / "a" / "b" / "run").is_dir()

    @pytest.mark.parametrize("error", [RuntimeError, Interrupted])
    def test_error_inside_leaves_nothing(self, tmp_path, error):
        def fill() -> None:
            with atomic_folder(tmp_path / "run") as folder:
                (folder / "a.txt").write_text("a")
                raise error

        with pytest.raises(error):
            fill()
        assert list(tmp_path.iterdir()) == []

    def test_what_a_killed_process_left_goes(self, tmp_path):
        """That of a live one stays, and so does what belongs to another name."""
        dead, live = 2**22 + 1, os.getppid()  # above the highest number of a process
        names = [f".model.{dead}.tmp", f".model.{live}.tmp", f".other.{dead}.tmp"]
        for name in names:
            (tmp_path / name).mkdir()
        with atomic_folder(tmp_path / "model") as place:
            (place / "file").touch()
        assert {path.name for path in tmp_path.iterdir()} == {"model", *names[1:]}

    def test_taken_name_is_refused(self, tmp_path):
        (tmp_path / "run").mkdir()
        with pytest.raises(FileExistsError), atomic_folder(tmp_path / "run"):
            pytest.fail("should not be entered")
        assert [path.name for path in tmp_path.iterdir()] == ["run"]

    def test_everything_is_on_the_disk_before_the_name(self, tmp_path, monkeypatch):
        done = []
        monkeypatch.setattr(files, "sync_path", lambda path: done.append(path.name))
        rename = files.os.rename
        monkeypatch.setattr(files.os, "rename", lambda *a: (done.append("rename"), rename(*a)))
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "a.txt").write_text("a")
            inner = folder.name
        assert done == ["a.txt", inner, "rename", tmp_path.name]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
class TestWhoMayRead:
    """safetensors writes files of mode 600; a server is often another user than the trainer."""

    @pytest.fixture(autouse=True)
    def set_umask(self, umask):
        before = os.umask(umask)
        yield
        os.umask(before)

    def test_file(self, tmp_path, umask):
        with atomic_file(tmp_path / "a") as aside:
            aside.unlink()  # safetensors makes another file, too
            aside.touch(0o600)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask

    def test_folder(self, tmp_path, umask):
        with atomic_folder(tmp_path / "model") as place:
            (place / "onnx").mkdir()
            for name in ("model.safetensors", "onnx/model.onnx"):
                (place / name).touch(0o600)
            (place / "run.sh").touch(0o700)
        modes = {
            path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*.*")
        }
        usual = 0o666 & ~umask
        names = ("model.safetensors", "model.onnx")
        assert modes == {**dict.fromkeys(names, usual), "run.sh": 0o700 | usual}


class TestPoint:
    def test_new_link(self, tmp_path):
        (tmp_path / "step-1").mkdir()
        point(tmp_path / "best", tmp_path / "step-1")
        assert (tmp_path / "best").resolve() == tmp_path / "step-1"

    def test_replaces(self, tmp_path):
        for name in ("step-1", "step-2"):
            (tmp_path / name).mkdir()
            point(tmp_path / "best", tmp_path / name)
        assert (tmp_path / "best").resolve() == tmp_path / "step-2"

    def test_still_holds_when_the_run_is_moved(self, tmp_path):
        (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
        point(tmp_path / "run" / "best", tmp_path / "run" / "checkpoints" / "1")
        (tmp_path / "run").rename(tmp_path / "moved")
        assert (tmp_path / "moved" / "best").is_dir()

    def test_leaves_nothing_beside(self, tmp_path):
        point(tmp_path / "best", tmp_path / "step-1")
        assert [path.name for path in tmp_path.iterdir()] == ["best"]

    def test_failure_leaves_nothing_beside(self, tmp_path):
        (tmp_path / "best").mkdir()
        with pytest.raises(OSError, match="best"):
            point(tmp_path / "best", tmp_path / "step-1")
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


# The module alone, without the package and so without torch: a second for each test otherwise.
SCRIPT = """
import importlib.util, os, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("files", {file!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)

def hang(*args):
    print("here", flush=True)
    time.sleep(60)

path = Path({path!r})
if {where!r} != "inside":
    setattr(os, {where!r}, hang)
{action}
"""

WRITE_TEXT = 'files.atomic_text(path, "new")'
POINT = 'files.point(path, path.with_name("new"))'
FILL_FOLDER = """
with files.atomic_folder(path) as folder:
    (folder / "a.txt").write_text("half")
    if {where!r} == "inside":
        hang()
"""


def kill(path: Path, action: str, where: str) -> None:
    """Run the action in a process of its own, and kill it when it comes to a call of `where`."""
    action = action.replace("{where!r}", repr(where))
    script = SCRIPT.format(file=files.__file__, path=str(path), where=where, action=action)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "here\n"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


class TestKill:
    @pytest.mark.parametrize("where", ["fsync", "replace"])
    def test_text_stays_the_old_one(self, tmp_path, where):
        (tmp_path / "a.txt").write_text("old")
        kill(tmp_path / "a.txt", WRITE_TEXT, where)
        assert (tmp_path / "a.txt").read_text() == "old"

    @pytest.mark.parametrize("where", ["fsync", "replace"])
    def test_new_text_is_not_there(self, tmp_path, where):
        kill(tmp_path / "a.txt", WRITE_TEXT, where)
        assert not (tmp_path / "a.txt").exists()

    @pytest.mark.parametrize("where", ["inside", "fsync", "rename"])
    def test_folder_is_not_there(self, tmp_path, where):
        kill(tmp_path / "run", FILL_FOLDER, where)
        assert not (tmp_path / "run").exists()

    def test_folder_can_be_made_afterwards(self, tmp_path):
        kill(tmp_path / "run", FILL_FOLDER, "inside")
        with atomic_folder(tmp_path / "run") as folder:
            (folder / "b.txt").write_text("b")
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["b.txt"]

    def test_what_is_left_behind_is_hidden(self, tmp_path):
        kill(tmp_path / "run", FILL_FOLDER, "inside")
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]

    def test_link_stays_the_old_one(self, tmp_path):
        point(tmp_path / "best", tmp_path / "old")
        kill(tmp_path / "best", POINT, "replace")
        assert (tmp_path / "best").readlink() == Path("old")
