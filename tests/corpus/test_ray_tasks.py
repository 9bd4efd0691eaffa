"""The same on Ray itself, which is started once; the stages are tested without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pretune.corpus import ray_tasks
from pretune.corpus.pipeline import Settings, prepare
from pretune.corpus.ray_tasks import check_folder, tasks_on_ray
from pretune.corpus.staged import Result
from pretune.errors import DataError, PretuneError
from tests.corpus.conftest import contents

SMALL = Settings(shard_tokens=20_000, validation=0.1, near_duplicates=0.9)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray with two processors, which this process has joined."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'pretune[cluster]')")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


DRIVER = """
import sys
from pretune.corpus import pipeline
from pretune.corpus.pipeline import Settings, prepare
from pretune.corpus.staged import WorkSizes

source, tokenizer, output = sys.argv[1:]
pipeline._LEAST_PIECE = 1
pipeline.SIZES = WorkSizes(piece=20_000)
settings = Settings(shard_tokens=20_000, validation=0.1, near_duplicates=0.9)
if __name__ == "__main__":
    prepare([source], tokenizer, output, settings, engine="ray", workers=1)
"""


@pytest.mark.alone
@pytest.mark.slow
def test_killed_on_a_cluster_it_goes_on(
    cluster: str, tmp_path: Path, corpus_file: Path, bpe_folder: Path
) -> None:
    """The first driver joins by RAY_ADDRESS and is killed; this process goes on with its parts."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "c"
    process = subprocess.Popen(
        [sys.executable, str(script), str(corpus_file), str(bpe_folder), str(output)],
        env={**os.environ, "RAY_ADDRESS": cluster},
    )
    parts = output.parent / ".c.unfinished" / "work" / "parts"
    deadline = time.monotonic() + 600
    while not list(parts.glob("[0-9]*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not output.exists()
    before = {path: path.stat().st_mtime_ns for path in parts.glob("[0-9]*/*")}
    seen: dict[Path, int] = {}

    def watch(progress: Any) -> None:
        seen.update({path: path.stat().st_mtime_ns for path in before if path.exists()})

    prepare([corpus_file], bpe_folder, output, SMALL, engine="ray", on_progress=watch)
    assert seen == before
    prepare([corpus_file], bpe_folder, tmp_path / "one", SMALL, workers=1)
    assert contents(output) == contents(tmp_path / "one")
    assert [path.name for path in output.parent.iterdir()] == ["c"]


@pytest.mark.alone
@pytest.mark.slow
def test_workers_that_die(cluster: str, tmp_path: Path) -> None:
    """Once, and the task is done again; always, and that is an error that says how to go on."""
    folder, results = str(tmp_path), {}

    def dies_once(shared: str, task: int) -> Result:
        import os
        import signal

        try:
            os.mkdir(f"{shared}/{task}")
        except FileExistsError:
            return {"number": task}
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def dies(shared: str, task: int) -> Result:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with tasks_on_ray(2, tmp_path) as run:
        run(dies_once, folder, range(3), results.__setitem__)
        assert results == {i: {"number": i} for i in range(3)}
        with pytest.raises(PretuneError, match=r"workers died(.|\n)*goes on where it stopped"):
            run(dies, folder, range(3), results.__setitem__)


@pytest.mark.alone
@pytest.mark.slow
def test_the_first_error_is_told(cluster: str, tmp_path: Path) -> None:
    """Not the one that comes first in time; and no more tasks begin after it."""

    def fails(shared: str, task: int) -> Result:
        import time
        from pathlib import Path

        from pretune.errors import DataError

        (Path(shared) / str(task)).mkdir()
        if task == 0:
            time.sleep(2)
        if task < 2:
            raise DataError(f"task {task}", "The way out.")
        return {}

    with (
        tasks_on_ray(2, tmp_path) as run,
        pytest.raises(DataError, match=r"task 0\n  The way out\."),
    ):
        run(fails, str(tmp_path), range(50), lambda number, result: None)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_a_worker_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_tasks, "_BETWEEN", 0)
    sign = tmp_path / "seen"
    sign.write_text("abc")
    check_folder(sign, "abc")
    stage = ray_tasks._Stage(lambda shared, task: {"task": task}, None, sign, "abc")
    assert ray_tasks._task(stage, 7) == {"task": 7}
    for content in (None, "of another corpus"):
        sign.unlink() if content is None else sign.write_text(content)
        error = ray_tasks._task(stage, 7)
        assert isinstance(error, DataError)
        assert "does not see this folder" in str(error)
        assert "--output in a folder that all machines have" in str(error)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("1.2.3.4:5", r"reached at 1\.2\.3\.4:5: no one there(.|\n)*Check RAY_ADDRESS"),
        (None, "started"),
    ],
)
def test_ray_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: str | None,
    expected: str,
) -> None:
    class Ray:
        is_initialized: Callable[[], bool] = staticmethod(lambda: False)

        @staticmethod
        def init(**named: Any) -> None:
            assert ("num_cpus" in named) == (environment is None)
            raise ConnectionError("no one there\nat all")

    monkeypatch.setattr(ray_tasks, "_installed", lambda: Ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    with pytest.raises(PretuneError, match=expected), tasks_on_ray(None, tmp_path):
        pass
