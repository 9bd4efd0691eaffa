"""What a corpus is read from: files, folders, globs, datasets on the Hugging Face Hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretune.errors import DataError, did_you_mean
from pretune.text.raw_text import ABOUT, IN_FOLDERS, text_kind

PARQUET = ".parquet"


@dataclass(frozen=True)
class CorpusSource:
    """One file, or one split of a Hub dataset.

    Attributes:
        name: as it is named in messages.
        kind: "text", "json", "parquet" or "hub".
        size: bytes of the file, as it lies on the disk; 0 for a Hub dataset.
        modified: when the file was changed last, in nanoseconds; 0 for a Hub dataset.
    """

    name: str
    kind: str
    size: int = 0
    modified: int = 0

    @property
    def path(self) -> str:
        """The one name that all spellings of its path have in common."""
        return self.name if self.kind == "hub" else os.path.realpath(self.name)

    def noted(self) -> dict[str, Any]:
        """What the manifest of a corpus says about it."""
        return {
            "name": self.name,
            "path": self.path,
            "size": self.size,
            "modified": self.modified,
        }

    def is_noted(self, noted: Mapping[str, Any]) -> bool:
        """Whether a manifest speaks of this source as it is now.

        Manifests of earlier versions have neither `path` nor `modified`.
        """
        name = noted["name"]
        path = noted.get("path", name if self.kind == "hub" else os.path.realpath(name))
        modified = noted.get("modified", self.modified)
        return (path, noted["size"], modified) == (self.path, self.size, self.modified)


def find_sources(given: Sequence[str | Path]) -> list[CorpusSource]:
    """All sources, in the order given; those of a folder or a glob in the order of their names.
    Each file once, however its path is spelled.

    Args:
        given: files, folders (all files in them, and in the folders below, that end in one of
            `IN_FOLDERS`, `.gz` after it or not, or in `.parquet`), globs (`data/**/*.txt`), or Hub
            datasets as `owner/name[:config]:split`.

    Raises:
        DataError: one is not there or holds nothing to read, or the format is none of a corpus.
    """
    found: dict[str, CorpusSource] = {}
    for one in given:
        for source in _find(str(one)):
            found.setdefault(source.path, source)
    if not found:
        raise DataError("no corpus given", "Name files, folders, globs or Hub datasets.")
    return list(found.values())


def _find(given: str) -> list[CorpusSource]:
    from pretune.data.readers.hub import (
        HUB_DATASET,
    )  # here: it brings torch, and workers import this package

    if os.path.isfile(given):
        return [_file(given)]
    if os.path.isdir(given):
        return _in_folder(given)
    if glob.has_magic(given):
        names = sorted(name for name in glob.glob(given, recursive=True) if os.path.isfile(name))
        if not names:
            raise DataError(f"{given}: no file is called like that", "Check the pattern.")
        return [_file(name) for name in names]
    if HUB_DATASET.fullmatch(given) and not os.path.exists(given):
        return [CorpusSource(given, "hub")]
    path = Path(given)
    beside = [p.name for p in path.parent.glob("*")] if os.path.isdir(path.parent) else []
    suggestion = f" {did_you_mean(path.name, beside)}" if 0 < len(beside) < 50 else ""
    raise DataError(
        f"{given}: no such file or folder.{suggestion}",
        "Check the path; a Hub dataset is owner/name:split or owner/name:config:split.",
    )


def _in_folder(folder: str) -> list[CorpusSource]:
    names = sorted(
        str(path)
        for path in Path(folder).rglob("*")
        if _belongs(path.name.lower())
        and not path.name.lower().startswith(ABOUT)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not names:
        raise DataError(
            f"{folder}: no corpus in this folder",
            f"Its files must end in one of {', '.join((*IN_FOLDERS, PARQUET))}; others can be "
            "given by name.",
        )
    return [_file(name) for name in names]


def _belongs(name: str) -> bool:
    return name.endswith(PARQUET) or name.removesuffix(".gz").endswith(IN_FOLDERS)


def _file(name: str) -> CorpusSource:
    status = os.stat(name)
    kind = "parquet" if name.lower().endswith(PARQUET) else text_kind(name)
    return CorpusSource(name, kind, status.st_size, status.st_mtime_ns)
