"""Parts: the documents of a piece of the sources, encoded, on the disk until the shards are made.

A part is a shard with all documents of its piece, and beside it what decides whether they stay.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np

from pretune.corpus.dedupe import DIGEST_BYTES, PERMUTATIONS, held_back
from pretune.corpus.documents import Document
from pretune.corpus.encode import CLEANING_STEPS, EncodedDocument, Encoder
from pretune.corpus.executors import batches_of
from pretune.corpus.staged import Result, finished, rows_of, write_runs
from pretune.corpus.store import Shard, open_shard
from pretune.corpus.unfinished import ShardWriter
from pretune.data.arrays import Array
from pretune.errors import DataError

#: What is counted once a document is kept: `changed` has a bit for each of `CLEANING_STEPS`.
DETAILS = np.dtype([("changed", "u1"), ("unknown", "<u4"), ("lost", "<u4")])
#: A document among others that may equal it: its digest in two halves, a hash of its signature,
#: and its row in the part.
EXACT = np.dtype([("key", "<u8"), ("more", "<u8"), ("signature", "<u8"), ("row", "<u4")])


def write_part(
    folder: Path, documents: Iterable[Document], encoder: Encoder, unknown: int | None, run: int
) -> Result:
    """Encode documents into a part; return what was counted.

    Args:
        folder: where its files are made.
        documents: of a piece.
        encoder: its signatures are written if it makes them.
        unknown: the id of the unknown token, if there is one.
        run: records that are sorted in memory.
    """
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    aside = folder / "aside"
    # Everything is written as it comes: how much a piece holds is not known before.
    with (
        closing(ShardWriter(folder, aside, encoder.settings.dtype, sys.maxsize)) as writer,
        (folder / "digests.bin").open("wb") as digests,
        (folder / "signatures.bin").open("wb") as signatures,
        (folder / "details.bin").open("wb") as details,
    ):
        for batch in batches_of(documents):
            counts.update(read=batch.read, cut=batch.cut, bad_lines=batch.bad_lines)
            dropped.update(batch.problems)
            for document in encoder(batch.texts):
                if document.dropped is not None:
                    dropped[document.dropped] += 1
                    continue
                writer.add(document)
                digests.write(document.digest)
                if document.signature is not None:
                    signatures.write(document.signature.astype("<u4", copy=False).tobytes())
                details.write(_details(document, unknown))
        writer.finish()
    shutil.rmtree(aside)
    write_runs(folder, "exact", _exact_records(folder, run))
    shard = writer.shards[0] if writer.shards else None
    total = shard["documents"] if shard else 0
    tokens = shard["tokens"] if shard else 0
    return {
        "documents": total,
        "tokens": tokens,
        "shard": shard,
        "counts": dict(counts),
        "dropped": dict(dropped),
    }


def _details(document: EncodedDocument, unknown: int | None) -> bytes:
    changed = sum(1 << CLEANING_STEPS.index(name) for name in document.changed)
    count = 0 if unknown is None else int(np.count_nonzero(document.tokens == unknown))
    return np.array((changed, count, document.lost), DETAILS).tobytes()


def _exact_records(folder: Path, run: int) -> Iterator[Array]:
    digests = rows_of(folder / "digests.bin", "u1", DIGEST_BYTES)
    signatures = rows_of(folder / "signatures.bin", "<u4", PERMUTATIONS)
    for start in range(0, len(digests), run):
        halves = digests[start : start + run].reshape(-1).view("<u8").reshape(-1, 2)
        records = np.zeros(len(halves), EXACT)
        records["key"], records["more"] = halves.T
        for first in range(0, len(halves) if len(signatures) else 0, 1 << 14):
            rows = signatures[start + first : start + min(first + (1 << 14), len(halves))]
            keys = band_keys(rows, 1, PERMUTATIONS)[:, 0]
            records["signature"][first : first + len(keys)] = keys
        records["row"] = np.arange(start, start + len(halves))
        yield records


def band_keys(values: Array, bands: int, rows: int) -> Array:
    """`[n, bands]` uint64: a hash of each band of `rows` values of signatures `[n, ...]` uint32.

    Bands of different numbers have different hashes.
    """
    banded = values[:, : bands * rows].reshape(len(values), bands, rows)
    # The number of the band is mixed first, or it would only change a value a little.
    keys = np.broadcast_to(_mixed(np.arange(bands, dtype=np.uint64)), banded.shape[:2])
    for row in range(rows):
        keys = _mixed(keys ^ banded[:, :, row])
    return keys


def _mixed(values: Array) -> Array:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), after its step."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


class CorpusPart:
    """A finished part."""

    def __init__(self, folder: Path, dtype: str) -> None:
        result = finished(folder)
        if result is None:
            raise DataError(f"{folder}: missing", "Begin anew with --restart.")
        self.folder, self.dtype, self.entry = folder, dtype, result["shard"]
        self.documents: int = result["documents"]

    def shard(self, *, verify: bool) -> Shard:
        """Its documents, mapped into memory; of a part without any there is none."""
        try:
            shard = open_shard(self.folder, {"dtype": self.dtype}, self.entry, 0, verify)
            if verify:
                shard.check()
        except DataError as error:
            raise DataError(
                error.message,
                f"Remove {self.folder}: the same command then does this part again, and goes on.",
            ) from None
        return shard

    def details(self) -> Array:
        """`[D]` of `DETAILS`."""
        raw = rows_of(self.folder / "details.bin", "u1", DETAILS.itemsize)
        return np.ascontiguousarray(raw).reshape(-1).view(DETAILS)

    def held_back(self, share: float) -> Array:
        """`[D]`: whether each document belongs to the validation data."""
        digests = rows_of(self.folder / "digests.bin", "u1", DIGEST_BYTES)
        if share == 0:
            return np.zeros(len(digests), bool)
        return np.array([held_back(row.tobytes(), share) for row in digests], bool)


class PartRows:
    """Digests and signatures of documents by their numbers, counted through all parts.

    Args:
        folders: of the parts.
        starts: `[parts + 1]` the number of the first document of each, and of all.
    """

    def __init__(self, folders: list[Path], starts: Array) -> None:
        self.folders, self.starts = folders, starts
        self._rows = cache(rows_of)

    def digests(self, numbers: Array) -> Array:
        """`[n, DIGEST_BYTES]` uint8."""
        return self._gather("digests.bin", "u1", DIGEST_BYTES, numbers)

    def signatures(self, numbers: Array) -> Array:
        """`[n, PERMUTATIONS]` uint32."""
        return self._gather("signatures.bin", "<u4", PERMUTATIONS, numbers)

    def _gather(self, name: str, dtype: str, width: int, numbers: Array) -> Array:
        gathered = np.zeros((len(numbers), width), dtype)
        parts = np.searchsorted(self.starts, numbers, side="right") - 1
        for part in np.unique(parts).tolist():
            which = parts == part
            rows = self._rows(self.folders[part] / name, dtype, width)
            gathered[which] = rows[numbers[which] - self.starts[part]]
        return gathered
