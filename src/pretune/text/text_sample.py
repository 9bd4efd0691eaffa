"""A sample of a stream of texts, spread evenly over the stream and bounded in memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

#: Bytes of a batch, the unit of sampling.
BATCH = 1 << 14
#: Separates the texts of a batch: a byte that never occurs in UTF-8.
_BETWEEN = b"\xff"
#: One batch in this many is held out.
HELD_OUT = 20
#: The most batches held out: 2 MiB of text give a compression to three digits.
MOST_HELD_OUT = 128

#: 2**64 divided by the golden ratio. The fractional parts of i / golden ratio fill [0, 1) as evenly
#: as the multiples of any number can (Knuth, The Art of Computer Programming 3, section 6.4). The i
#: whose part is below a threshold are therefore spread evenly, whatever the threshold.
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in memory, as UTF-8."""

    batches: Sequence[bytes]

    def __iter__(self) -> Iterator[str]:
        for batch in self.batches:
            for text in batch.split(_BETWEEN):
                yield text.decode()

    def __len__(self) -> int:
        return sum(batch.count(_BETWEEN) + 1 for batch in self.batches)

    @property
    def bytes(self) -> int:
        """Number of bytes in UTF-8."""
        return sum(len(batch) - batch.count(_BETWEEN) for batch in self.batches)


@dataclass(frozen=True, slots=True)
class TextSample:
    """The texts kept from a stream."""

    texts: Texts  # the texts kept, in order
    seen: int  # bytes (UTF-8) of the whole stream
    whole: bool  # whether the stream was kept as a whole

    def split(self) -> tuple[Texts, Texts]:
        """Split into texts to train on and a twentieth or less to measure on.

        Too little text is not split: then both are all texts.
        """
        batches = self.texts.batches
        # Every 20th batch from the middle of the first 20 on, thinned out to MOST_HELD_OUT.
        chosen = range(HELD_OUT // 2, len(batches), HELD_OUT)
        held = set(chosen[:: -(-len(chosen) // MOST_HELD_OUT) or 1])
        if not held:
            return self.texts, self.texts
        rest = [batch for i, batch in enumerate(batches) if i not in held]
        return Texts(rest), Texts([batches[i] for i in sorted(held)])


def take_sample(texts: Iterable[str], limit: int) -> TextSample:
    """Read a stream to its end, and keep at most `limit` bytes (UTF-8), spread evenly over it.

    The same stream gives the same sample. Empty texts are passed over.
    """
    kept: list[tuple[int, int, bytes]] = []  # a heap, with the next batch to drop on top
    held = seen = 0
    threshold = 2**64
    for index, batch in enumerate(_batches(texts)):
        seen += len(batch) - batch.count(_BETWEEN)
        # A batch is a candidate while its part is below the threshold.
        part = index * _GOLDEN % 2**64
        if part >= threshold:
            continue
        # Over the limit, the threshold sinks to the highest part that is held.
        held += len(batch)
        heapq.heappush(kept, (-part, index, batch))
        while held > limit and len(kept) > 1:
            highest, _, dropped = heapq.heappop(kept)
            threshold = -highest
            held -= len(dropped)
    kept.sort(key=lambda item: item[1])
    return TextSample(Texts([batch for _, _, batch in kept]), seen, whole=threshold == 2**64)


def _batches(texts: Iterable[str]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size = 0
    for text in texts:
        if not text:
            continue
        batch.append(text.encode())
        size += len(batch[-1])
        if size >= BATCH:
            yield _BETWEEN.join(batch)
            batch, size = [], 0
    if batch:
        yield _BETWEEN.join(batch)
