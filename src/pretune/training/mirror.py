"""The copy of a run in object storage, which outlives the machine that trains.

s3://bucket/runs/films/
    checkpoints/step-000300/...   whole checkpoints, each with its manifest
    recipe.yaml, metrics.jsonl, events/, ...
    mirror.json                   which checkpoints are whole, and which of them is the best

At every moment there is something to go on from: a checkpoint arrives before `mirror.json` names
it, and an old one is removed when nothing names it any more. Files are sent by a thread of their
own, so that training does not wait; storage that cannot be reached is tried again with the next
checkpoint.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from pretune.checkpoints.atomic_io import point
from pretune.checkpoints.manifest import MANIFEST, find_damage
from pretune.checkpoints.run_copy import (
    CHECKPOINT_NAME,
    POINTER,
    CopiedCheckpoints,
    read_pointer,
    step_of,
)
from pretune.errors import DataError, RunError
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from pretune.storage.object_store import (
    StoredObject,
    check_name,
    fetch,
    listed,
    read_text,
    remove,
    send_file,
    url_of,
    write_text,
)
from pretune.training.checkpoint import FOLDER, checkpoints, newest_whole
from pretune.training.run_folder import OURS, RECIPE, RESULT, RunFolder

#: The links of a run folder, which object storage does not have.
LINKS = ("last", "best")


class Mirror:
    """Context that keeps the copy of a run up to date while it trains, and makes it whole at last.

    Args:
        place: the prefix in object storage.
        run: the folder of the run.
        say: tells of storage that cannot be reached.
    """

    def __init__(self, place: str, run: Path, say: Callable[[str], None]) -> None:
        self.url, self.run, self.say = url_of(place), run, say
        self._files: dict[str, tuple[int, int]] = {}  # sent: sizes and times of change
        self._whole: set[str] | None = None  # checkpoints that are there
        self._pointer: CopiedCheckpoints | None = None  # as it is there
        self._due = threading.Event()
        self._over = False
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._due.set()
        self._thread.join()
        try:
            self.send()
        except DataError as trouble:
            if error is None:
                raise RunError(
                    f"{self.run}: the run is whole, but its copy is not: {trouble.message}",
                    f"{trouble.hint} Then send the rest: pretune train --resume {self.run}",
                ) from None
            self.say(f"{trouble.message}; the copy of this run is not complete")

    def soon(self) -> None:
        """Send what is new, in the other thread: to be called after each checkpoint."""
        self._due.set()

    def _work(self) -> None:
        while self._due.wait() and not self._over:
            self._due.clear()
            try:
                self.send()
                self._failed = False
            except DataError as error:
                if not self._failed:
                    self.say(f"{error.message}; it is tried again with the next checkpoint")
                self._failed = True

    def send(self) -> None:
        """Bring the copy up to date.

        Raises:
            DataError: the storage cannot be reached.
        """
        # What tells how a checkpoint came about goes first, and the result when all is there.
        self._send_files(without=(RESULT,))
        whole = self._send_checkpoints()
        last, best = (self._target(name) for name in LINKS)
        if last in whole:
            pointer = CopiedCheckpoints(tuple(sorted(whole)), last, best if best in whole else None)
            if pointer != self._pointer:
                write_text(f"{self.url}/{POINTER}", pointer.to_json())
                self._pointer = pointer
        self._remove_old(whole)
        if (self.run / RESULT).is_file():
            self._send_files(without=())

    def _send_files(self, *, without: tuple[str, ...]) -> None:
        """Send the files of the run that changed, but for its checkpoints."""
        for name in (RECIPE, *OURS):
            if name in (*without, *LINKS, FOLDER):
                continue
            path = self.run / name
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in inside:
                # It may be replaced or removed at any time.
                with suppress(FileNotFoundError):
                    self._send_changed(file)

    def _send_changed(self, file: Path) -> None:
        name, stat = file.relative_to(self.run).as_posix(), file.stat()
        mark = (stat.st_size, stat.st_mtime_ns)
        if file.is_file() and self._files.get(name) != mark:
            send_file(file, f"{self.url}/{name}")
            self._files[name] = mark

    def _send_checkpoints(self) -> set[str]:
        """Send the checkpoints that are not there yet; return the names of those that are."""
        if self._whole is None:  # of a run that goes on
            pointer = read_pointer(self.url)
            self._whole = set() if pointer is None else set(pointer.whole)
        local = [path for _, path in checkpoints(self.run)]
        for path in local:
            if path.name in self._whole or find_damage(path) is not None:
                continue
            # The run may remove it meanwhile: then there are newer ones.
            with suppress(FileNotFoundError):
                files = [file for file in path.rglob("*") if file.is_file()]
                for file in sorted(files, key=lambda file: (file.name == MANIFEST, file)):
                    name = file.relative_to(self.run).as_posix()
                    send_file(file, f"{self.url}/{name}")
                self._whole.add(path.name)
        return self._whole & {path.name for path in local}

    def _target(self, link: str) -> str:
        return os.path.basename(os.path.realpath(self.run / link))

    def _remove_old(self, whole: set[str]) -> None:
        """Remove the checkpoints that the run has no more, and what never became whole."""
        folder = f"{self.url}/{FOLDER}"
        there = {stored.url[len(folder) + 1 :].partition("/")[0] for stored in listed(folder)}
        for name in sorted(there - whole):
            if CHECKPOINT_NAME.fullmatch(name):
                remove(f"{folder}/{name}")
        self._whole = set(whole)


def copied_recipe(place: str) -> Recipe | None:
    """Read the recipe of a run that has its copy at a place; None where there is no copy.

    Raises:
        DataError: the storage cannot be reached.
        PretuneError: the recipe cannot be read.
    """
    url = f"{url_of(place)}/{RECIPE}"
    text = read_text(url)
    if text is None:
        return None
    values = yaml12.parse(text, url)
    if not isinstance(values, dict):
        raise DataError(f"{url}: is no recipe", "Is it another file?")
    return Recipe.of(values, url)


def check_free(place: str) -> None:
    """Check that no run has its copy at a place.

    Raises:
        RunError: there is one.
        DataError: the storage cannot be reached.
    """
    url = url_of(place)
    if read_text(f"{url}/{RECIPE}") is not None:
        raise RunError(
            f"{url}: already holds the copy of a run",
            "Go on with it: pretune train RECIPE --resume auto; or choose another with "
            "train.mirror=URL, or add --overwrite to delete it.",
        )


def clear_copy(place: str) -> None:
    """Remove the copy of a run, or what is left of one.

    Raises:
        DataError: the storage cannot be written to.
    """
    # The pointer first: what is half removed is no copy.
    for name in (POINTER, *OURS, RECIPE):
        if name not in LINKS:
            remove(f"{url_of(place)}/{name}")


def fetch_run(place: str, folder: RunFolder) -> bool:
    """Copy a run from object storage, where it is further there; repeat what was interrupted.

    Args:
        place: the prefix in object storage.
        folder: of the run; the recipe arrives last, and with it there is a run.

    Returns:
        whether anything was copied.

    Raises:
        DataError: the storage cannot be reached, or what is there is not the copy of a run.
        RunError: another process trains in the folder, or it cannot be written.
    """
    url = url_of(place)
    pointer = read_pointer(url)
    if pointer is None:
        return False
    if folder.exists() and not _is_behind(folder, pointer, url):
        return False
    known = folder.exists()
    with folder.locked(), folder.filling():
        arrived = _objects_of(pointer, url)
        recipe = arrived.pop(RECIPE, None)
        if recipe is None:
            raise DataError(f"{url}: has no {RECIPE}", "Copy it there, or train anew.")
        for name, stored in sorted(arrived.items()):
            parts, file = name.split("/"), folder.path / name
            # Logs may have changed, and a damaged checkpoint of an earlier run is none.
            if parts[0] != FOLDER or (known and find_damage(folder.path / FOLDER / parts[1])):
                file.unlink(missing_ok=True)
            fetch(stored, file)
        for link, target in (("last", pointer.last), ("best", pointer.best)):
            if target is not None:
                point(folder.path / link, folder.path / FOLDER / target)
        if not known:
            fetch(recipe, folder.path / RECIPE)
    return True


def _is_behind(folder: RunFolder, pointer: CopiedCheckpoints, url: str) -> bool:
    """Whether a run is further in its copy than in its folder."""
    own = newest_whole(folder.path)
    steps = -1 if own is None else step_of(own.name)
    if steps != pointer.steps:
        return steps < pointer.steps
    return folder.result() is None and read_text(f"{url}/{RESULT}") is not None


def _objects_of(pointer: CopiedCheckpoints, url: str) -> dict[str, StoredObject]:
    """The objects of a copy by their names, without checkpoints that are not whole."""
    arrived = {}
    for stored in listed(url):
        name = stored.url[len(url) + 1 :]
        parts = name.split("/")
        inside = parts[0] == FOLDER and len(parts) > 1
        if parts[0] not in (RECIPE, *OURS) or (inside and parts[1] not in pointer.whole):
            continue
        check_name(stored, name)
        arrived[name] = stored
    return arrived
