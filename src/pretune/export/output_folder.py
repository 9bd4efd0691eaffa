"""The folder that an export writes: new, or instead of an earlier model; whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretune.checkpoints.atomic_io import (
    atomic_folder,
    check_new_name,
    is_aside,
    remove_folder,
    replace_folder,
)
from pretune.errors import RunError, not_writable

#: A model for use has this file, and no folder below it.
_CONFIG = "config.json"


def check_new_folder(path: Path, what: str = "folder") -> None:
    """Refuse a name that is taken.

    Raises:
        RunError: there is something of that name, or it cannot be used.
    """
    check_new_name(path)
    _check_link(path)
    if path.exists():
        raise RunError(f"{path}: exists already", f"Name another {what}: --output {what.upper()}.")


def check_output_folder(path: Path, *, overwrite: bool) -> None:
    """Check before the work starts that its results can be written; touches nothing.

    Raises:
        RunError: the folder exists and `overwrite` is not set, or it holds more than one model, or
            the name cannot be used.
    """
    check_new_name(path)
    _check_link(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path}: is a file, not a folder", "Name another --output.")
    if not overwrite:
        raise RunError(f"{path}: exists already", "Add --overwrite, or name another --output.")
    others = [part for part in path.iterdir() if part.is_dir() and not is_aside(part)]
    if others or not (path / _CONFIG).is_file():
        raise RunError(
            f"{path}: is not the folder of one model; nothing is replaced there",
            "Name another --output.",
        )


def _check_link(path: Path) -> None:
    """Refuse a link to nothing, in whose place no folder can be put."""
    if path.is_symlink() and not path.exists():
        raise RunError(
            f"{path}: is a link to {os.readlink(path)}, which is not there",
            "Remove the link, or name another --output.",
        )


@contextmanager
def output_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder, which takes the name `path` once it is complete.

    Raises:
        RunError: by `check_output_folder`, or the folder cannot be written.
    """
    check_output_folder(path, overwrite=overwrite)
    try:
        # Written in full beside the earlier one, which is there until the last moment.
        whole = path.with_name(f".{path.name}.new") if path.exists() else path
        if whole.exists():
            remove_folder(whole)
        with atomic_folder(whole) as place:
            yield place
        if whole != path:
            replace_folder(path, whole)
    except OSError as error:
        raise not_writable(path, "--output", error) from None
