"""Object storage as S3: a real server of its protocol (moto), real kills."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretune.checkpoints.run_copy import read_pointer
from pretune.checkpoints.source import find_source
from pretune.corpus.store import Corpus
from pretune.data.readers.files import read
from pretune.recipe.recipe import Recipe
from pretune.storage.object_store import look_up, send_folder
from tests.training.outcomes import assert_alike, outcome

pytestmark = pytest.mark.slow

#: MiB that go there and back; 300 were measured.
SIZE = int(os.environ.get("PRETUNE_S3_MIB", "48"))
BUCKET = "s3://texts"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server with an empty bucket; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + 120
    while True:
        try:
            made = urllib.request.Request(f"{url}/{BUCKET[5:]}", method="PUT")  # noqa: S310
            urllib.request.urlopen(made, timeout=20).close()  # noqa: S310
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
    yield url
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def _account(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "something",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PRETUNE_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)


def killed_after(code: str, path: Path, size: int) -> None:
    """Run a program, and kill it once the files of a folder (or objects) have a size."""
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        files = [own for own in path.rglob("*") if own.is_file()] if path.exists() else []
        if sum(own.stat().st_size for own in files) >= size:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_run_outlives_its_machines(toy_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Killed at any moment, each time with its disk: the next machine goes on bit for bit."""
    steady = {"train__max_steps": 200, "train__epochs": 200, "train__eval_every": 100}
    steady |= {"train__save_every": 5}
    whole = toy_recipe(**steady, output=str(tmp_path / "whole"))
    place = f"{BUCKET}/runs/films"
    recipe = whole.changed({"output": str(tmp_path / "run"), "train.mirror": place})
    run, train = Path(recipe.output), [sys.executable, "-m", "pretune", "train"]
    for name, own in (("whole", whole), ("copied", recipe)):
        (tmp_path / f"{name}.yaml").write_text(own.to_yaml(), encoding="utf-8")
    # By the same program, as all kernels have to be the same.
    command = [*train, str(tmp_path / "whole.yaml"), "--quiet"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    command = [*train, str(tmp_path / "copied.yaml"), "--resume", "auto", "--quiet"]
    chance, steps = random.Random(0), [0]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end, pointer = time.monotonic() + 300, None
        while pointer is None or pointer.steps <= steps[-1]:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
            pointer = read_pointer(place)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        shutil.rmtree(run)
        pointer = read_pointer(place)
        assert pointer is not None
        steps.append(pointer.steps)
    assert steps == sorted({*steps})
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert_alike(outcome(run), outcome(whole.output))
    assert find_source(place).is_dir()


def test_there_and_back_killed_twice(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    chance = random.Random(0)
    part = SIZE * 2**20 // 6
    for name in ("a.bin", "inner/b.bin", "c.bin", "d.bin"):
        (folder / name).write_bytes(chance.randbytes(part))
    (folder / "large.bin").write_bytes(chance.randbytes(2 * part))
    send = (
        "from pathlib import Path; from pretune.storage.object_store import send_folder; "
        f"send_folder(Path({str(folder)!r}), '{BUCKET}/folder')"
    )
    # Killed as soon as the first object has arrived.
    process = subprocess.Popen([sys.executable, "-c", send])
    while look_up(f"{BUCKET}/folder/.sent.json") is None and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    sent = send_folder(folder, f"{BUCKET}/folder")
    assert 0 < sent < 6 * part
    # And back: killed in the middle of the large file.
    fetch = (
        "from pretune.storage.object_store import local_folder; "
        f"print(local_folder('{BUCKET}/folder'))"
    )
    killed_after(fetch, tmp_path / "cache/objects", round(5.2 * part))
    left = [own for own in (tmp_path / "cache").rglob("*") if own.is_file()]
    modified = {own: own.stat().st_mtime_ns for own in left if own.suffix == ".bin"}
    assert modified
    done = subprocess.run([sys.executable, "-c", fetch], capture_output=True, text=True, check=True)
    copy = Path(done.stdout.splitlines()[-1])
    for name in ("a.bin", "inner/b.bin", "c.bin", "d.bin", "large.bin"):
        digests = [hashlib.sha256((own / name).read_bytes()).hexdigest() for own in (folder, copy)]
        assert digests[0] == digests[1], name
    # What had come before the kill was not fetched again.
    assert all(own.stat().st_mtime_ns == time for own, time in modified.items())


def test_a_run_from_s3(tmp_path: Path, tiny_folder: Path) -> None:
    chance = random.Random(0)
    words = ["the", "good", "bad", "film", "was", "seen", "by", "us", "and", "it", "is"]
    rows = [" ".join(chance.choices(words, k=9)) for _ in range(200)]
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("\n\n".join(rows), encoding="utf-8")
    table = "text,label\n" + "".join(f"{row},{'good' in row}\n" for row in rows)
    (texts / "labelled.csv").write_text(table, encoding="utf-8")
    send_folder(texts, f"{BUCKET}/texts")
    send_folder(tiny_folder, f"{BUCKET}/model")

    def pretune(*arguments: str) -> str:
        command = [sys.executable, "-m", "pretune", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    model, corpus = f"{BUCKET}/model", f"{BUCKET}/corpus"
    prepare = ("prepare", f"{BUCKET}/texts/*.txt", "--tokenizer", model, "--output", corpus)
    assert f"wrote {corpus}" in pretune(*prepare)
    assert "is there already" in pretune(*prepare)
    assert len(Corpus.open(corpus, verify=True)) > 100
    pretune(
        *("train", "emotion", f"data.train={BUCKET}/texts/labelled.csv", "data.validation=0.2"),
        *(f"model.from={model}", "train.max_steps=2", "task.max_length=32"),
        "output=run",
    )
    assert read(f"{BUCKET}/texts/labelled.csv").rows[0]["text"] == rows[0]
    assert find_source(model).name == "files"


def test_a_wrong_name_is_a_mistake_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pretune", "describe", f"{BUCKET}/none.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{BUCKET}/none.csv: no such object" in done.stderr
    assert "Traceback" not in done.stderr
