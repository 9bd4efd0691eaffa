"""`manifest.json`: the size and the SHA-256 of every file of a folder, so that damage is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Describe all files that lie in a folder now."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": _digest(path)}
    text = json.dumps({"files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def find_damage(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> str | None:
    """What is wrong with a folder that has a manifest: a sentence that names the file, or None.

    Args:
        folder: with a manifest; one without is damaged.
        wanted: which files to look at, by name; default: all.
    """
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {
            str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()
        }
    except FileNotFoundError:
        return f"{path}: missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path}: damaged"
    for name, (size, digest) in expected.items():
        if wanted(name) and (found := _compare(folder / name, size, digest)) is not None:
            return found
    return None


def _compare(path: Path, size: int, digest: str) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path}: damaged ({found:,} bytes, written were {size:,})"
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
