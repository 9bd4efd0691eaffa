"""Writing so that a reader, or a crash, sees the old state or the new one and nothing between."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def atomic_text(path: Path, text: str) -> None:
    """Write a text file: aside, to the disk, then renamed into place."""
    aside = _aside(path)
    try:
        with aside.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it appears under its name only when all of it is on the disk.

    Raises:
        FileExistsError: the name is taken.
    """
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    shutil.rmtree(aside, ignore_errors=True)
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
