"""Atomic writing: a reader, or a crash, sees the old state or the new one, never a mixture."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretune.errors import RunError
from pretune.host import is_running, sync_path
from pretune.storage.object_store import is_url, url_of
from pretune.text.terminal import in_line

_ASIDE = re.compile(r"\..+\.(\d+)\.tmp")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_aside(path: Path) -> bool:
    """Whether the name of a path is that of a file or folder being written."""
    return _ASIDE.fullmatch(path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder.

    Files of other live processes stay. Call it only while this process writes nothing there: in a
    container, the killed process may have had the same number.
    """
    for path in folder.iterdir():
        match = _ASIDE.fullmatch(path.name)
        if match is not None and not _is_another(int(match[1])):
            _discard(path)


def discard_left(path: Path) -> None:
    """Remove what killed processes left of a file or folder that gets this name.

    Only for what no other machine may be writing at this moment: its processes look like dead ones.
    """
    with suppress(OSError):  # a folder that cannot be listed
        for left in path.parent.iterdir():
            match = _ASIDE.fullmatch(left.name)
            named = match is not None and left.name == f".{path.name}.{match[1]}.tmp"
            if match is not None and named and not _is_another(int(match[1])):
                _discard(left)


def _is_another(process: int) -> bool:
    """Whether a process is alive and is not this one."""
    return process != os.getpid() and is_running(process)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_new_name(path: Path) -> None:
    """Refuse names for new files and folders that are URLs, or would cut notes and logs in two.

    Raises:
        RunError: the path is a place in object storage, where it would become a folder `s3:` on the
            disk; or a name holds a line end or another control character, or is not in UTF-8.
    """
    if is_url(path):
        raise RunError(
            f"{in_line(url_of(path))}: is a place in object storage, and this is written to the "
            "disk",
            "Name a path on the disk, and copy it from there.",
        )
    for place in (path, *path.parents):
        if os.path.lexists(place):
            return
        if in_line(place.name) != place.name:
            raise RunError(
                f"{in_line(path)}: a new name may hold no line ends and no control characters",
                "Choose another name.",
            )


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, synced to the disk.

    Raises:
        RunError: by `check_new_name`.
        OSError: it cannot be made.
    """
    if path.is_dir():
        return
    check_new_name(path)
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_path(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder in one step: no part of it is ever seen without the rest."""
    aside = _aside(path)
    _discard(aside)
    os.rename(path, aside)
    _discard(aside)


def replace_folder(path: Path, whole: Path) -> None:
    """Put a complete folder in the place of an earlier one, which goes only after that.

    Args:
        path: the earlier folder, or a link to one: then the link goes.
        whole: beside it; its name is free afterwards.

    Raises:
        OSError: it cannot be done; the earlier folder is where it was.
    """
    aside = _aside(path)
    _discard(aside)
    os.rename(path, aside)
    try:
        os.rename(whole, path)
    except BaseException:
        os.rename(aside, path)
        raise
    sync_path(path.parent)
    _discard(aside)


def _open_up(file: Path, like: os.stat_result) -> None:
    """Let those read a new file who can read any other file that this process makes.

    safetensors writes files that only their owner can read; a server often is another user.

    Args:
        file: complete, without its name.
        like: a file or folder that was made by plain means.
    """
    if file.is_symlink() or not file.is_file():
        return
    mode, readers = file.stat().st_mode & 0o777, like.st_mode & 0o444
    if mode & readers != readers:
        with suppress(OSError):  # a file system without such rights
            file.chmod(mode | readers)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file gets its name once it is complete and on the disk.

    Raises:
        RunError: by `check_new_name`.
    """
    check_new_name(path)
    aside = _aside(path)
    try:
        aside.touch()
        usual = aside.stat()
        yield aside
        _open_up(aside, usual)
        sync_path(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def atomic_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder; it gets its name once it is complete and on the disk.

    Raises:
        FileExistsError: the name is taken.
        RunError: by `check_new_name`.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(path)
    check_new_name(path)
    make_folder(path.parent)
    aside = _aside(path)
    discard_left(path)
    aside.mkdir()
    usual = aside.stat()
    try:
        yield aside
        for file in sorted(aside.rglob("*")):
            _open_up(file, usual)
            sync_path(file)
        sync_path(aside)
        os.rename(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_path(path.parent)


def point(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to `target`, replacing an older link in one step."""
    aside = _aside(link)
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(os.path.relpath(target, link.parent))
        os.replace(aside, link)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_path(link.parent)
