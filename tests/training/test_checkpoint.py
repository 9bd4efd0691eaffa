"""RunCheckpoints: which are kept, what the links say, what a failure leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pretune.bundle.bundle import Bundle, load
from pretune.checkpoints.manifest import find_damage
from pretune.errors import CheckpointError, RunError
from pretune.recipe.recipe import Recipe
from pretune.training import checkpoint
from pretune.training.checkpoint import RunCheckpoints, checkpoints, newest_whole, read_state
from pretune.training.state import TrainingState, generators

Make = Callable[..., Recipe]


@pytest.fixture
def bundle(tiny_folder: Path) -> Bundle:
    return load(tiny_folder, bare=True)


@pytest.fixture
def make_store(tmp_path: Path, bundle: Bundle) -> Callable[..., RunCheckpoints]:
    def make(**options: Any) -> RunCheckpoints:
        return RunCheckpoints(tmp_path, bundle, **{"background": False, **options})

    return make


def state(best: int | None = None) -> TrainingState:
    found = generators()
    found.values["course"] = {"best_step": best}
    return found


def save(store: RunCheckpoints, *steps: int, best: set[int] = frozenset()) -> None:
    """As the loop does: each says which was the best so far."""
    for step in steps:
        so_far = max((other for other in best if other <= step), default=None)
        store.save(step, state(so_far), best=step in best)
    store.flush()


def damage(path: Path) -> None:
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def steps(run: Path) -> list[int]:
    return [step for step, _ in checkpoints(run)]


def link(run: Path, name: str) -> str:
    assert (run / name).exists()
    return (run / name).resolve().name


def place(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def failing(number: int, reason: str) -> Callable[..., None]:
    def fail(*args: Any) -> None:
        raise OSError(number, reason)

    return fail


class TestPruning:
    @pytest.mark.parametrize(
        ("keep", "best", "left"),
        [
            (1, set(), [5]),
            (2, set(), [4, 5]),
            (9, set(), [1, 2, 3, 4, 5]),
            (1, {1}, [1, 5]),
            (2, {1, 2}, [2, 4, 5]),
            (1, {5}, [5]),
            # Whoever goes back to 4 finds what was best then: 3.
            (2, {3, 5}, [3, 4, 5]),
        ],
    )
    def test_keeps_the_newest_and_their_best(
        self, make_store: Any, tmp_path: Path, keep: int, best: set[int], left: list[int]
    ) -> None:
        save(make_store(keep=keep), 1, 2, 3, 4, 5, best=best)
        assert steps(tmp_path) == left
        assert link(tmp_path, "last") == "step-000005"
        if best:
            assert link(tmp_path, "best") == f"step-{max(best):06d}"

    def test_damaged_ones_never_count(self, make_store: Any, tmp_path: Path) -> None:
        said: list[str] = []
        store = make_store(keep=2, say=said.append)
        save(store, 1, 2, 3, best={1})
        for step in (2, 3):
            damage(place(tmp_path, step))
        save(store, 4, best={1})
        assert steps(tmp_path) == [1, 2, 3, 4]  # 1 and 4 are the two
        assert link(tmp_path, "best") == "step-000001"
        save(store, 5, best={1})
        assert steps(tmp_path) == [1, 4, 5]
        assert len(said) == 2  # each once, though looked at again

    def test_what_cannot_be_removed_stops_nothing(
        self, make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: Path) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(checkpoint, "remove_folder", refuse)
        said: list[str] = []
        save(make_store(say=said.append), 1, 2)
        assert steps(tmp_path) == [1, 2]
        assert said == [f"{place(tmp_path, 1)}: cannot be removed (Operation not permitted)"]

    def test_is_never_seen_in_part(
        self, make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Removing begins with another name: who lists them meanwhile finds whole ones."""
        seen: list[list[str | None]] = []
        unlink = os.unlink

        def watching(*args: Any, **options: Any) -> None:
            unlink(*args, **options)
            seen.append([find_damage(path) for _, path in checkpoints(tmp_path)])

        store = make_store()
        save(store, 1)
        monkeypatch.setattr(os, "unlink", watching)
        save(store, 2)
        assert len(seen) >= 5
        assert all(found == [None] for found in seen)

    def test_other_things_there_are_left_alone(self, make_store: Any, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        (folder / "step-000002").write_text("a file of that name")
        (folder / "step-one").mkdir()
        save(make_store(), 1, 2, 3)
        names = {path.name for path in folder.iterdir()}
        assert names == {"notes.txt", "step-000002", "step-one", "step-000003"}


class TestGoingBack:
    def test_to_at_most(self, make_store: Any, tmp_path: Path) -> None:
        store = make_store(keep=9)
        save(store, 2, 4, 6, best={4})
        assert newest_whole(tmp_path) == place(tmp_path, 6)
        assert newest_whole(tmp_path, 6) == place(tmp_path, 6)
        assert newest_whole(tmp_path, 5) == place(tmp_path, 4)
        assert newest_whole(tmp_path, 1) == place(tmp_path, 2)  # the oldest there is
        damage(place(tmp_path, 4))
        assert newest_whole(tmp_path, 5) == place(tmp_path, 2)
        assert newest_whole(tmp_path / "elsewhere") is None

    def test_drops_the_course_not_taken(self, make_store: Any, tmp_path: Path) -> None:
        store = make_store(keep=9)
        save(store, 2, 4, 6, 8, best={2, 6})
        saved = store.newest(5)
        assert saved is not None
        assert saved.place == str(place(tmp_path, 4))
        assert saved.state.values["course"]["best_step"] == 2
        assert steps(tmp_path) == [2, 4]
        assert link(tmp_path, "last") == "step-000004"
        assert link(tmp_path, "best") == "step-000002"

    def test_finds_the_best_of_then_whatever_is_kept(self, make_store: Any, tmp_path: Path) -> None:
        store = make_store(keep=2)
        save(store, 1, 2, 3, 4, best={1, 4})
        store.newest(3)
        assert link(tmp_path, "best") == "step-000001"

    def test_to_a_step_that_has_a_name_already(self, make_store: Any, tmp_path: Path) -> None:
        store = make_store(keep=9)
        save(store, 1, 2, best={2})
        damage(place(tmp_path, 2))
        save(store, 2, best={2})
        save(store, 2)
        names = [path.name for _, path in checkpoints(tmp_path)]
        assert names == ["step-000001", "step-000002", "step-000002.1", "step-000002.2"]
        assert link(tmp_path, "best") == "step-000002.1"
        assert newest_whole(tmp_path) == place(tmp_path, 2).with_name("step-000002.2")
        save(store, 10, best={2})
        assert link(tmp_path, "last") == "step-000010"

    def test_more_than_six_digits_are_the_newest(self, make_store: Any, tmp_path: Path) -> None:
        save(make_store(keep=2), 999_999, 1_000_000)
        assert steps(tmp_path) == [999_999, 1_000_000]
        assert newest_whole(tmp_path) == place(tmp_path, 1_000_000)

    def test_to_a_damaged_best_says_so(self, make_store: Any, tmp_path: Path) -> None:
        said: list[str] = []
        store = make_store(keep=9, say=said.append)
        save(store, 1, 2, best={1})
        damage(place(tmp_path, 1))
        (tmp_path / "best").unlink()
        store.read(place(tmp_path, 2))
        assert "the best model so far, of update 1, is damaged or gone" in said
        assert not (tmp_path / "best").is_symlink()

    @pytest.mark.parametrize("name", ["last", "best"])
    def test_a_link_that_was_not_made_any_more(
        self, make_store: Any, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed between the checkpoint and the link, which nothing else would set again."""
        store = make_store(keep=2)
        save(store, 1, best={1})
        point = checkpoint.point

        def killed(path: Path, target: Path) -> None:
            if path.name == name:
                raise KeyboardInterrupt
            point(path, target)

        monkeypatch.setattr(checkpoint, "point", killed)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2, best={1, 2})
        monkeypatch.undo()
        assert link(tmp_path, name) == "step-000001"
        again = make_store(keep=2)
        found = newest_whole(tmp_path)
        assert found is not None
        again.read(found)
        assert link(tmp_path, "last") == link(tmp_path, "best") == "step-000002"

    def test_links_never_dangle(
        self, make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Looked at before each change of the folder, wherever it may be interrupted."""
        store = make_store(keep=2)
        save(store, 1, 2, 3, best={1, 3})
        looks = 0

        def look() -> None:
            nonlocal looks
            looks += 1
            for name in ("best", "last"):
                assert (tmp_path / name).exists()
                assert find_damage((tmp_path / name).resolve()) is None

        for function in ("rename", "replace", "unlink", "rmdir"):
            original = getattr(os, function)

            def watching(*args: Any, original: Any = original, **options: Any) -> Any:
                look()
                done = original(*args, **options)
                look()
                return done

            monkeypatch.setattr(os, function, watching)
        store.newest(2)
        save(store, 3, 4, 5, best={1, 5})
        assert looks > 20

    def test_a_model_alone_is_no_run(self, make_store: Any, tmp_path: Path) -> None:
        save(make_store(), 1)
        (place(tmp_path, 1) / "trainer.json").unlink()
        with pytest.raises(CheckpointError, match="but not the state of a run"):
            read_state(place(tmp_path, 1))


class TestLeftOvers:
    @pytest.fixture
    def living(self) -> Iterator[int]:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        yield process.pid
        process.kill()
        process.communicate()

    def dead(self) -> int:
        process = subprocess.Popen(["true"])
        process.wait()
        return process.pid

    def test_of_the_dead_go_and_of_the_living_stay(
        self, make_store: Any, tmp_path: Path, living: int
    ) -> None:
        folder = tmp_path / "checkpoints"
        for process in (self.dead(), living, os.getpid(), 10**30):
            (folder / f".step-000007.{process}.tmp").mkdir(parents=True)
            (folder / f".step-000007.{process}.tmp" / "model.safetensors").write_text("half")
        save(make_store(), 1)
        left = {path.name for path in folder.iterdir()}
        assert left == {"step-000001", f".step-000007.{living}.tmp"}


class TestBackground:
    @pytest.fixture
    def gate(self, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
        """Nothing is written before this is set."""
        gate = threading.Event()
        original = checkpoint.save

        def waiting(*args: Any) -> None:
            assert gate.wait(60)
            original(*args)

        monkeypatch.setattr(checkpoint, "save", waiting)
        return gate

    def test_keeps_what_was_and_not_what_became(
        self, make_store: Any, bundle: Bundle, tmp_path: Path, gate: threading.Event
    ) -> None:
        store, found = make_store(background=True), state()
        found.tensors["moment"] = next(iter(bundle.model.parameters())).detach()
        before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
        store.save(1, found, best=False)
        for parameter in bundle.model.parameters():
            parameter.data.add_(1.0)
        assert steps(tmp_path) == []
        gate.set()
        store.flush()
        saved = store.read(place(tmp_path, 1))
        assert all(saved.weights[name].equal(value) for name, value in before.items())
        first = next(name for name, _ in bundle.model.named_parameters())
        assert saved.state.tensors["moment"].equal(before[first])

    @pytest.mark.parametrize("after", ["save", "flush", "newest"])
    def test_failure_surfaces_at_the_next_call_and_once(
        self, make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
    ) -> None:
        store = make_store(background=True, keep=9)
        save(store, 1)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", failing(28, "No space left on device"))
            store.save(2, state(), best=False)
            calls = {
                "save": lambda: store.save(3, state(), best=False),
                "flush": store.flush,
                "newest": store.newest,
            }
            with pytest.raises(RunError, match=r"step-000002.*No space left on device"):
                calls[after]()
        assert steps(tmp_path) == [1]
        save(store, 4)
        assert steps(tmp_path) == [1, 4]


class TestFailure:
    def test_names_file_reason_what_is_whole_and_the_way_out(
        self, make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store(keep=9)
        save(store, 1, 2)
        damage(place(tmp_path, 2))
        monkeypatch.setattr(
            checkpoint,
            "save_file",
            lambda *a: (_ for _ in ()).throw(OSError(122, "Quota exceeded")),
        )
        with pytest.raises(RunError) as caught:
            save(store, 3)
        assert str(caught.value) == (
            f"{place(tmp_path, 3)}: the checkpoint cannot be written (Quota exceeded); "
            f"{place(tmp_path, 1)} is intact\n"
            f"  Make room, then go on: pretune train --resume {tmp_path}"
        )
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
            "step-000001",
            "step-000002",
        }

    def test_of_the_first_promises_nothing(
        self, make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "save_file", failing(28, "Full"))
        with pytest.raises(RunError) as caught:
            save(make_store(), 1)
        assert "intact" not in str(caught.value)
        assert list((tmp_path / "checkpoints").iterdir()) == []


def test_all_is_on_the_disk_before_it_has_its_name(
    make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded at the system calls: files, their folder, the name, the folder above, the link."""
    done: list[tuple[str, Path]] = []
    open_, fsync, rename, replace = os.open, os.fsync, os.rename, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def named(how: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Path, target: Path) -> None:
            how(source, target)
            done.append(("name", Path(target)))

        return moved

    run = tmp_path / "a" / "run"
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", named(rename))
    monkeypatch.setattr(os, "replace", named(replace))
    store = make_store()
    store.run = run
    save(store, 1, best={1})
    assert os.open is open_
    target = place(run, 1)
    at = done.index(("name", target))
    before = {path for what, path in done[:at] if what == "sync"}
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    assert {aside / path.name for path in target.iterdir()} <= before
    assert len(list(target.iterdir())) >= 6
    assert aside in before
    # Folders that were made are in the folders above them before anything is in them.
    assert {tmp_path, tmp_path / "a", run} <= before
    after = done[at + 1 :]
    assert after == [
        ("sync", target.parent),
        ("name", run / "last"),
        ("sync", run),
        ("name", run / "best"),
        ("sync", run),
    ]
    # Each file is written in full when it is synced: nothing came after.
    last = max(i for i, (_, path) in enumerate(done[:at]) if path.parent == aside)
    assert done[last + 1 : at] == [("sync", aside)]
