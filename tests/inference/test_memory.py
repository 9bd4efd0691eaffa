"""Freed memory is kept: some for answers; for training all but half of what is needed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretune.bundle.bundle import save
from pretune.inference.memory import HugePages, Tidy, own_memory, reusing_memory
from tests.tasks.every_task import CASES

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="glibc alone keeps freed memory so",
)
MIB = 1 << 20


class Heap:
    """What an update needs, on top of which some stays behind each time; each takes a second."""

    def __init__(self, left: float, trim_takes: float = 0.01) -> None:
        self.left, self.trim_takes = left, trim_takes
        self.spare, self.need, self.trims, self.now = 0.0, 0.0, 0, 0.0

    def update(self, need: float) -> None:
        self.need = need
        self.spare += self.left * need
        self.now += 1.0

    def trim(self) -> None:
        self.spare, self.trims = 0.0, self.trims + 1
        self.now += self.trim_takes

    def held(self) -> int:
        return int((self.need + self.spare) * MIB)

    def tidy(self) -> Tidy:
        return Tidy(self.trim, self.held, lambda: self.now)


def test_what_stays_behind_is_bounded() -> None:
    heap = Heap(left=0.02)
    tidy, most = heap.tidy(), 0
    for _ in range(2000):
        heap.update(1000)
        tidy()
        most = max(most, heap.held())
    assert most < 1600 * MIB  # without it: 41,000
    assert 2000 / 30 < heap.trims < 2000 / 20


@given(
    st.lists(st.integers(1, 100_000), min_size=1, max_size=300),
    st.floats(0, 1),
    st.floats(0.001, 5),
)
def test_giving_back_takes_a_hundredth_of_the_time(
    needs: list[int], left: float, trim_takes: float
) -> None:
    heap = Heap(left, trim_takes)
    tidy = heap.tidy()
    for need in needs:
        heap.update(need)
        tidy()
    assert heap.trims <= 1 + len(needs) / (100 * trim_takes)


def test_nothing_is_given_back_while_there_is_little() -> None:
    heap = Heap(left=0.001)
    tidy = heap.tidy()
    for _ in range(100):
        heap.update(1000)
        tidy()
    assert heap.trims == 0


@glibc
def test_free_memory_goes_back_to_the_system() -> None:
    with reusing_memory() as tidy:
        tidy()  # learns what there is now
        assert isinstance(tidy, Tidy)
        before = own_memory()
        tidy.limit = before + 512 * MIB  # whatever other tests have left
        # 1 GiB: of 2 GiB at the end of the heap glibc gives back by itself.
        blocks = [torch.ones(4 * MIB) for _ in range(64)]
        kept = [torch.ones(1000) for _ in range(64)]
        blocks.clear()
        assert own_memory() > before + 768 * MIB  # freed, and still here
        tidy()
        assert own_memory() < before + 256 * MIB
        assert len(kept) == 64
        kept.clear()  # it would hold on to all that is below it, for the tests to come


def test_elsewhere_nothing_happens() -> None:
    with reusing_memory(enabled=False) as tidy:
        tidy()


@glibc
def test_an_answers_memory_serves_the_next_one() -> None:
    # In a process of its own: large blocks, too, come from what other tests have left in the heap.
    program = """if True:
        import ctypes
        import resource
        import torch
        from pretune.inference.memory import keep_freed_memory, own_memory

        MIB = 1 << 20

        def faults(size):
            "Pages that the system gives, and clears, for ten blocks one after the other."
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(10):
                torch.ones(size * MIB, dtype=torch.uint8)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        # As after a training: thresholds that were set do not grow by themselves.
        ctypes.CDLL(None).mallopt(-3, 128 << 10)
        keep_freed_memory()
        faults(16)
        assert faults(16) < 16 * MIB // resource.getpagesize()
        # What is larger goes back to the system.
        held = own_memory()
        torch.ones(200 * MIB, dtype=torch.uint8)
        assert own_memory() < held + 100 * MIB
    """
    subprocess.run([sys.executable, "-c", program], check=True)


@glibc
def test_a_heap_that_trains_has_large_pages() -> None:
    # In a process of its own: what other tests have mapped may lie where the heap would grow to.
    program = """if True:
        from pathlib import Path
        from pretune.inference.memory import reusing_memory
        with reusing_memory():
            print(Path("/proc/self/smaps").read_text())
    """
    command = [sys.executable, "-c", program]
    smaps = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # The flags of a part come last, so that they begin what follows.
    pairs = pairwise(smaps.split("VmFlags:"))
    flags = [after.splitlines()[0].split() for part, after in pairs if "[heap]" in part]
    offered = Path("/sys/kernel/mm/transparent_hugepage").is_dir()
    assert any("hg" in those for those in flags) == offered


class Calls:
    """A C library with a heap that grows when it is told to, in pages of 4 KiB."""

    def __init__(self) -> None:
        self.end = 1 << 30
        self.asked: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        calls = {"sbrk": lambda _: self.end, "malloc": self.grow, "free": lambda _: None}
        calls["madvise"] = lambda start, size, advice: self.asked.append((start, size))
        setattr(self, name, partial(calls[name]))  # ctypes sets attributes of functions
        return self.__dict__[name]

    def grow(self, size: int) -> int:
        self.end += size
        return self.end - size


def test_large_pages_are_asked_for_once_for_each_part() -> None:
    libc: Any = Calls()
    pages = HugePages(libc)
    pages.reserve()
    pages.ask()
    libc.grow(8 * MIB)
    pages.ask()
    libc.end -= 4 * MIB  # a trim
    pages.ask()
    libc.grow(MIB)
    pages.ask()
    start, ahead = 1 << 30, 1 << 30
    assert libc.asked == [
        (start, ahead),
        (start + ahead, 8 * MIB),
        (start + ahead + 4 * MIB, MIB),
    ]


#: Answers all rows of a file, and prints the most memory that it had, in MiB.
PREDICT = """if True:
    import re, sys
    from pathlib import Path
    from pretune.cli.predict import predict
    predict(sys.argv[1], file=Path(sys.argv[2]), output=Path(sys.argv[3]), device="cpu")
    status = Path("/proc/self/status").read_text()
    print(int(re.findall(r"VmHWM:\\s+(\\d+)", status)[0]) / 1024)
"""


@pytest.mark.slow
@glibc
def test_a_long_file_is_answered_in_the_memory_of_a_short_one(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    save(CASES["classify"].bundle(tiny_folder, tmp_path), tmp_path / "model")
    peaks = {}
    for rows in (10_000, 60_000):
        data, out = tmp_path / f"in-{rows}.csv", tmp_path / f"out-{rows}.csv"
        with data.open("w", encoding="utf-8") as file:
            file.write("id,text\n")
            file.writelines(f"{i},a good film {i % 97}\n" for i in range(rows))
        command = [sys.executable, "-c", PREDICT, str(tmp_path / "model"), str(data), str(out)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[rows] = float(done.stdout)
        with out.open(encoding="utf-8") as file:
            assert sum(1 for _ in file) == rows + 1
    # As objects of Python 50,000 rows with their answers are more.
    assert peaks[60_000] < peaks[10_000] + 20
