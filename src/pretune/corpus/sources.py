"""What a corpus is read from: files, folders, globs, datasets on the Hugging Face Hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretune.errors import DataError, did_you_mean
from pretune.text.read import ABOUT

#: Formats by the end of a name; `.gz` may follow that of a text or of JSON lines.
JSON_LINES = (".jsonl", ".json")
PARQUET = (".parquet",)
_TABLES = (".csv", ".tsv")
#: What is taken out of a folder. A file that is named may be called anything.
IN_FOLDERS = (".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz")


@dataclass(frozen=True)
class Source:
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
    def zipped(self) -> bool:
        """Whether it is compressed by gzip."""
        return self.name.lower().endswith(".gz")


def find_sources(given: Sequence[str | Path]) -> list[Source]:
    """All sources, in the order given; those of a folder or a glob in the order of their names.

    Args:
        given: files, folders (searched with all that is in them for `IN_FOLDERS`), globs
            (`data/**/*.txt`), or Hub datasets as `owner/name[:config]:split`.

    Raises:
        DataError: one is not there or holds nothing to read, or the format is none of a corpus.
    """
    found: dict[str, Source] = {}
    for one in given:
        for source in _find(str(one)):
            found.setdefault(source.name, source)
    if not found:
        raise DataError("no corpus given", "Name files, folders, globs or Hub datasets.")
    return list(found.values())


def _find(given: str) -> list[Source]:
    from pretune.data import HUB_DATASET  # here: it brings torch, and workers import this package

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
        return [Source(given, "hub")]
    path = Path(given)
    beside = [p.name for p in path.parent.glob("*")] if os.path.isdir(path.parent) else []
    suggestion = f" {did_you_mean(path.name, beside)}" if 0 < len(beside) < 50 else ""
    raise DataError(
        f"{given}: no such file or folder.{suggestion}",
        "Check the path; a Hub dataset is owner/name:split or owner/name:config:split.",
    )


def _in_folder(folder: str) -> list[Source]:
    names = sorted(
        str(path)
        for path in Path(folder).rglob("*")
        if path.name.lower().endswith(IN_FOLDERS)
        and not path.name.lower().startswith(ABOUT)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not names:
        raise DataError(
            f"{folder}: no corpus in this folder",
            f"Its files must end in one of {', '.join(IN_FOLDERS)}; others can be given by name.",
        )
    return [_file(name) for name in names]


def _file(name: str) -> Source:
    status = os.stat(name)
    return Source(name, _kind(name), status.st_size, status.st_mtime_ns)


def _kind(name: str) -> str:
    plain = name.lower()
    if plain.endswith(PARQUET):
        return "parquet"
    plain = plain.removesuffix(".gz")
    if plain.endswith(JSON_LINES):
        return "json"
    if plain.endswith(_TABLES):
        raise DataError(
            f"{name}: a table is no corpus format",
            "Write its column of texts as JSON lines or Parquet first.",
        )
    return "text"
