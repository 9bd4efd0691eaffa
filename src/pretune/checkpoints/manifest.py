"""`manifest.json`: the size and SHA-256 of every file in a folder, to detect damage."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

MANIFEST = "manifest.json"
#: The manifest of ten thousand files is a tenth of this.
_MAX_BYTES = 16 << 20


def write_manifest(folder: Path) -> None:
    """Record all files that are in a folder now."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": _digest(path)}
    text = json.dumps({"files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def find_damage(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> str | None:
    """Compare a folder with its manifest, and describe the first damage: a sentence, or None.

    No file outside the folder is touched, whatever the manifest says. A folder without one is
    damaged. `wanted` picks the files to check by name.
    """
    path = folder / MANIFEST
    try:
        expected = _read(path)
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path}: damaged"
    for name, (size, digest) in expected.items():
        if wanted(name) and (damage := _compare(folder / name, size, digest)) is not None:
            return damage
    return None


def files_digest(folder: Path, but: Collection[str] = ()) -> str:
    """SHA-256 of the names and contents of the files that lie in a folder, but for some names.

    The manifest, hidden files and descriptions (`.md`) do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        ignored = path.name in (MANIFEST, *but) or path.name.startswith(".") or path.suffix == ".md"
        if path.is_file() and not ignored:
            digest.update(f"{path.name} {_digest(path)}\n".encode())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, tuple[int, str]]:
    """Read sizes and digests by name; anything that `write_manifest` does not write is an error."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        raise ValueError
    expected = {}
    for name, entry in json.loads(path.read_text(encoding="utf-8"))["files"].items():
        size, digest = entry["size"], entry["sha256"]
        if not _is_inside(name) or type(size) is not int or type(digest) is not str:
            raise ValueError
        expected[name] = size, digest
    return expected


def _is_inside(name: str) -> bool:
    """Whether a name is a plain relative path inside a folder."""
    path = PurePosixPath(name)
    return (
        name == path.as_posix() and name.isprintable() and not {"..", "."} & {name, *path.parts}
    ) and not path.is_absolute()


def _compare(path: Path, size: int, digest: str) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never be read to its end
            return f"{path}: damaged (not a file)"
        if status.st_size != size:
            return f"{path}: damaged ({status.st_size:,} bytes, written were {size:,})"
        if _digest(path) != digest:
            return f"{path}: damaged (its SHA-256 is not that of what was written)"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
