"""Duplicates found in tasks over files, beside `Duplicates` in memory, on random signatures."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretune.corpus import dedupe_stages, parts
from pretune.corpus.dedupe import DIGEST_BYTES, PERMUTATIONS, Duplicates, lsh_bands
from pretune.corpus.dedupe_stages import Verdicts, first_hits, mark_duplicates
from pretune.corpus.parts import EXACT, band_keys
from pretune.corpus.staged import WorkSizes, make, read_partition, task_folder, write_runs
from pretune.data.arrays import Array
from tests.corpus.conftest import run_here


def chains(generator: random.Random, count: int, changes: int) -> list[tuple[bytes, Array]]:
    """Documents like others: some are copies, some change a few values of one before.

    With few changes a document is alike the one that it comes from, and less and less those that
    this one came from: who stays depends on who stayed.
    """
    random_values = np.random.default_rng(generator.randrange(2**31))
    documents: list[tuple[bytes, Array]] = []
    for _ in range(count):
        kind = generator.random()
        values = random_values.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)
        key = generator.randbytes(DIGEST_BYTES)
        if documents and kind < 0.85:
            # Of the last ones, so that chains get long; sometimes of any.
            near = documents[-1] if kind < 0.5 else generator.choice(documents)
            where = random_values.integers(0, PERMUTATIONS, generator.randint(0, changes))
            values = np.where(np.isin(np.arange(PERMUTATIONS), where), values, near[1])
            if kind > 0.7:  # equal in digest, with another signature or the same
                key = near[0]
        documents.append((key, values.astype(np.uint32)))
    return documents


def in_memory(
    documents: list[tuple[bytes, Array]], exact: bool, near: float | None
) -> list[str | None]:
    duplicates = Duplicates(exact=exact, near=near)
    return [duplicates.reason(key, values) for key, values in documents]


def on_disk(
    work: Path,
    documents: list[tuple[bytes, Array]],
    exact: bool,
    near: float | None,
    sizes: WorkSizes,
    lengths: list[int],
) -> tuple[list[bool], dict[str, int], int]:
    """What stays, counts by reason, and rounds; the documents are in parts of these lengths."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for number in range(len(lengths)):
        mine = documents[starts[number] : starts[number + 1]]

        def task(folder: Path, mine: Any = mine) -> dict[str, Any]:
            (folder / "digests.bin").write_bytes(b"".join(key for key, _ in mine))
            raw = b"" if near is None else b"".join(values.tobytes() for _, values in mine)
            (folder / "signatures.bin").write_bytes(raw)
            write_runs(folder, "exact", parts._exact_records(folder, sizes.run))
            return {}

        make(task_folder(work, "parts", number), task)
    made, counts = mark_duplicates(work, sizes, starts, exact, near, run_here)
    return Verdicts(made).kept(0, len(documents)).tolist(), counts, made.rounds


@pytest.mark.parametrize("seed", range(12))
def test_the_same_documents_stay(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    generator = random.Random(seed)
    near = (0.5, 0.8, 0.9, 1.0)[seed % 4]
    exact = seed % 3 != 2
    documents = chains(generator, 400, changes=int(PERMUTATIONS * (1 - near) * 1.2) + 2)
    cuts = sorted(generator.choices(range(401), k=6))
    lengths = np.diff([0, *cuts, 400]).tolist()
    sizes = WorkSizes(1, generator.choice([50, 10**6]), 900, generator.choice([3, 40]), 130)
    reasons = in_memory(documents, exact, near)
    kept, counts, rounds = on_disk(tmp_path, documents, exact, near, sizes, lengths)
    assert kept == [reason is None for reason in reasons]
    assert counts == {r: reasons.count(r) for r in ("duplicate", "near-duplicate") if r in reasons}
    assert 20 < sum(kept) < 380
    if near < 1:  # documents that are only decided once others are
        assert rounds > 2


@pytest.mark.parametrize("near", [None, 0.8])
def test_equal_documents_only(tmp_path: Path, near: float | None) -> None:
    generator = random.Random(1)
    values = np.arange(PERMUTATIONS, dtype=np.uint32)
    keys = [bytes([generator.randrange(40)]) * DIGEST_BYTES for _ in range(100)]
    documents = [(key, values + np.uint32(1000 * key[0])) for key in keys]
    reasons = in_memory(documents, True, near)
    kept, counts, _ = on_disk(
        tmp_path, documents, True, near, WorkSizes(run=7, partition=9), [30, 0, 70]
    )
    assert kept == [reason is None for reason in reasons]
    assert counts == {"duplicate": reasons.count("duplicate")}


def test_nothing_at_all(tmp_path: Path) -> None:
    for near in (None, 0.8):
        kept, counts, _ = on_disk(tmp_path / str(near), [], True, near, WorkSizes(), [0, 0])
        assert (kept, counts) == ([], {})


def test_a_long_chain_takes_few_rounds_for_the_size_of_the_rest(tmp_path: Path) -> None:
    """Each document is alike the one before it only: every second one stays."""
    values = np.arange(PERMUTATIONS, dtype=np.uint32)
    documents = []
    for number in range(120):
        # A fifth of the values changes each time, at other places.
        values = values.copy()
        values[number * 25 % 125 : number * 25 % 125 + 25] += np.uint32(1000)
        documents.append((number.to_bytes(DIGEST_BYTES, "big"), values))
    reasons = in_memory(documents, True, 0.8)
    assert reasons == [None, "near-duplicate"] * 60
    kept, _, rounds = on_disk(tmp_path, documents, True, 0.8, WorkSizes(rest=30), [50, 70])
    assert kept == [True, False] * 60
    assert rounds <= 6


def test_a_bucket_of_documents_that_are_all_alike_takes_one_comparison_each() -> None:
    members, compared = np.arange(1000), []

    def alike(one: Array, other: Array) -> Array:
        compared.append(len(one))
        return np.ones(len(one), bool)

    everyone = np.ones(1000, bool)
    hits = first_hits(members, np.array([0, 400]), everyone, everyone, alike)
    assert np.flatnonzero(~hits).tolist() == [0, 400]
    assert sum(compared) == 998


def test_first_hits_beside_loops() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        sizes = generator.integers(1, 7, 5)
        starts = np.cumsum(sizes) - sizes
        members = np.concatenate([np.sort(generator.integers(0, 12, size)) for size in sizes])
        sources, targets = generator.random((2, len(members))) < 0.6
        table = generator.random((12, 12)) < 0.3
        expected = []
        for place, member in enumerate(members):
            first = starts[np.searchsorted(starts, place, side="right") - 1]
            before = [p for p in range(first, place) if sources[p] and members[p] != member]
            expected.append(bool(targets[place] and any(table[members[p], member] for p in before)))

        def alike(one: Array, other: Array, table: Array = table) -> Array:
            return table[one, other]

        hits = first_hits(members, starts, sources, targets, alike)
        assert hits.tolist() == expected


def test_a_bucket_does_not_make_documents_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all had the same key, all would be compared: and those still need a band in common."""
    keys = dedupe_stages.band_keys
    monkeypatch.setattr(
        dedupe_stages, "band_keys", lambda *arguments: np.zeros_like(keys(*arguments))
    )
    count, rows = lsh_bands(0.5)
    values = np.arange(PERMUTATIONS, dtype=np.uint32)
    other = values.copy()
    other[: count * rows : rows] += np.uint32(1)  # one value in every band: none is equal
    assert np.mean(values == other) > 0.6
    documents = [(b"a" * DIGEST_BYTES, values), (b"b" * DIGEST_BYTES, other)]
    assert in_memory(documents, True, 0.5) == [None, None]
    assert on_disk(tmp_path, documents, True, 0.5, WorkSizes(), [2])[0] == [True, True]


def test_band_keys_are_equal_for_equal_bands_only() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 3, (3000, 6), dtype=np.uint32)
    keys = band_keys(values, 2, 3)
    for band in (0, 1):
        seen = {tuple(row) for row in values[:, 3 * band : 3 * band + 3].tolist()}
        assert len(seen) == 27 == len(set(keys[:, band].tolist()))
    assert not set(keys[:, 0].tolist()) & set(keys[:, 1].tolist())


def test_partitions_are_all_records(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    runs = []
    for length in (0, 1, 500, 2000):
        run = np.zeros(length, EXACT)
        run["key"] = generator.integers(0, 2**64, length, dtype=np.uint64)
        run["row"] = np.arange(length)
        runs.append(run)
    runs[2]["key"][:3] = (0, 2**64 - 1, 2**63)
    assert write_runs(tmp_path, "x", iter(runs)) == 2501
    everything = np.concatenate(runs)
    for count in (1, 3, 5000):
        for number in {0, count // 2, count - 1}:
            low, high = 2**64 * number // count, 2**64 * (number + 1) // count
            expected = [r.tolist() for r in everything if low <= int(r["key"]) < high]
            records = read_partition(tmp_path, "x", EXACT, number, count)
            assert sorted(records.tolist()) == sorted(expected)
    assert sum(len(read_partition(tmp_path, "x", EXACT, i, 7)) for i in range(7)) == 2501
