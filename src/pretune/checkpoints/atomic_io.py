"""Writing so that a reader, or a crash, sees the old state or the new one and nothing between."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ASIDE = re.compile(r"\..+\.(\d+)\.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_aside(path: Path) -> bool:
    """Whether a path is something half-written, by its name."""
    return _ASIDE.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder.

    What another process that lives may be writing stays. Only for when this one writes nothing
    there: in a container the one that was killed had the same number.
    """
    for path in folder.iterdir():
        found = _ASIDE.fullmatch(path.name)
        if found is not None and not _is_another(int(found[1])):
            _discard(path)


def _is_another(process: int) -> bool:
    """Whether it lives and is not this one."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return process != os.getpid()


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they are there; on the disk when this returns."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, which at no moment is there in part."""
    aside = _aside(path)
    _discard(aside)
    os.rename(path, aside)
    _discard(aside)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file to write, aside; it bears its name only when all of it is on the disk."""
    aside = _aside(path)
    try:
        yield aside
        _sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def atomic_text(path: Path, text: str) -> None:
    """Write a text file: aside, to the disk, then renamed into place."""
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill; it appears under its name only when all of it is on the disk.

    Raises:
        FileExistsError: the name is taken.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(path)
    make_folder(path.parent)
    aside = _aside(path)
    _discard(aside)
    aside.mkdir()
    try:
        yield aside
        for file in sorted(aside.rglob("*")):
            _sync(file)
        _sync(aside)
        os.rename(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _sync(path.parent)


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, replacing an older one in one step."""
    aside = _aside(link)
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(os.path.relpath(target, link.parent))
        os.replace(aside, link)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(link.parent)
