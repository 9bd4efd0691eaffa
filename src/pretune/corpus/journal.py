"""The folder of an unfinished corpus, and the note of how far it is, so that a kill costs little.

It lies beside the corpus-to-be, which appears under its name only when it is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pretune.checkpoints.atomic_io import atomic_text
from pretune.corpus.dedupe import DIGEST_BYTES, PERMUTATIONS, Duplicates, Signature
from pretune.corpus.shards import cut_file, sync
from pretune.errors import DataError

_SIGNATURE_BYTES = 4 * PERMUTATIONS


class Journal:
    """The folder of an unfinished corpus.

    Attributes:
        folder: the folder.
        out: in it, what is to become the corpus.

    Raises:
        DataError: there is no folder beside which it could lie.
    """

    def __init__(self, output: Path) -> None:
        if not output.name:
            raise DataError(f"{output}: no folder can be made there", "Choose another --output.")
        self.folder = output.with_name(f".{output.name}.unfinished")
        self.out = self.folder / "out"
        self.path = self.folder / "journal.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes this corpus; the system lets go when a process dies.

        Raises:
            DataError: somebody does, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "lock").open("w")
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror})", "Choose another --output."
            ) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(
                    f"{self.folder}: this corpus is being prepared already",
                    "Wait for it, or choose another --output.",
                ) from None
            try:
                yield
            finally:
                # Without a note of how far it is, what was written is of no use to anyone.
                if not self.path.exists():
                    shutil.rmtree(self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Forget what was done."""
        self.path.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def read(self, identity: Mapping[str, Any]) -> dict[str, Any] | None:
        """How far the work on this very corpus is; None: nothing is done.

        Raises:
            DataError: what was done belongs to other settings or sources, or cannot be read.
        """
        if not self.path.exists():
            self.clear()
            return None
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
            before, state = dict(noted["identity"].items()), dict(noted["state"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(f"{self.path}: damaged", "Begin anew with --restart.") from None
        now = json.loads(json.dumps(identity))
        if before != now:
            other = next((key for key in now if before.get(key) != now[key]), "version")
            raise DataError(
                f"{self.folder}: an unfinished corpus with another {other}",
                "Give the same command again to go on with that one, or begin anew with --restart.",
            )
        return state

    def write(self, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Note how far the work is; what it speaks of is on the disk already."""
        atomic_text(self.path, json.dumps({"identity": identity, "state": state}))

    def publish(self, output: Path) -> None:
        """Give the finished corpus its name."""
        for path in [*self.out.rglob("*"), self.out]:
            sync(path)
        os.rename(self.out, output)
        sync(output.parent)
        self.path.unlink(missing_ok=True)


class KeptDocuments:
    """The digests and signatures of kept documents on the disk, to know them after a kill.

    Args:
        folder: of the journal.
        duplicates: to be told of those that were kept before.
        count: how many were.
    """

    def __init__(self, folder: Path, duplicates: Duplicates, count: int) -> None:
        self.count = count
        self._duplicates = duplicates
        self._keys = folder / "digests.bin"
        self._values = folder / "signatures.bin"
        near = duplicates.near is not None
        cut_file(self._keys, count * DIGEST_BYTES)
        cut_file(self._values, count * _SIGNATURE_BYTES if near else 0)
        if count:
            self._remember(near)
        self._handles = [path.open("ab") for path in (self._keys, self._values)]

    def _remember(self, near: bool) -> None:

        with self._keys.open("rb") as keys, self._values.open("rb") as values:
            for _ in range(self.count):
                raw = values.read(_SIGNATURE_BYTES) if near else b""
                self._duplicates.remember(
                    keys.read(DIGEST_BYTES), np.frombuffer(raw, "<u4") if near else None
                )

    def add(self, key: bytes, values: Signature | None) -> None:
        """Note a document that is kept."""
        self._handles[0].write(key)
        if values is not None:
            self._handles[1].write(values.astype("<u4", copy=False).tobytes())
        self.count += 1

    def sync(self) -> int:
        """Bring it to the disk.

        Returns:
            How many documents are noted.
        """
        for handle in self._handles:
            handle.flush()
            os.fsync(handle.fileno())
        return self.count

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            handle.close()
