"""`prepare`: from raw text to a folder of tokenized shards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pretune.checkpoints.atomic_io import atomic_text
from pretune.checkpoints.source import find_tokenizer
from pretune.corpus.dedupe import Duplicates, held_back
from pretune.corpus.documents import (
    CorpusSource,
    Meter,
    ReadingOptions,
    find_sources,
    read_documents,
)
from pretune.corpus.encode import Cleaning, EncodedDocument, EncoderSettings
from pretune.corpus.executors import DocumentBatch, encode_batches
from pretune.corpus.pieces import plan_pieces
from pretune.corpus.ray_tasks import cluster_size, tasks_on_ray
from pretune.corpus.staged import WorkSizes, clean_up
from pretune.corpus.stages import Job, make_corpus
from pretune.corpus.store import (
    CORPUS_MANIFEST,
    FORMAT,
    TOKENIZER,
    VALIDATION_SPLIT,
    VERSION,
    Corpus,
    read_manifest,
    sum_counts,
)
from pretune.corpus.unfinished import Journal, KeptDocuments, ShardWriter
from pretune.errors import CheckpointError, DataError, PretuneError, did_you_mean
from pretune.host import usable_cores
from pretune.storage.cache_folder import cache_folder
from pretune.storage.object_store import is_url, local_copy, look_up, send_folder, url_of
from pretune.text.decode import check_encoding
from pretune.tokenizers.tokenizer import Tokenizer

#: Seconds between two notes in the journal: a note takes time, and a kill loses what came after.
NOTE_SECONDS = 5.0
#: The engines: one process reads, decides and writes, while others encode; or workers do all.
ENGINES = ("processes", "ray")
#: How large the parts of the work of the workers are.
SIZES = WorkSizes()
#: Pieces of the sources are at least this large, and so many for each worker if they can.
_LEAST_PIECE = 2**20
_PIECES_EACH = 4
_OTHER = {
    "tokenizer": "another tokenizer",
    "settings": "other settings",
    "sources": "other sources, or with these before they were changed",
}


@dataclass(frozen=True)
class Settings:
    """What the content of a corpus depends on, apart from its sources and its tokenizer."""

    reading: ReadingOptions = field(default_factory=ReadingOptions)  # how documents are read
    cleaning: Cleaning = field(default_factory=Cleaning)  # how their texts are cleaned
    keep_duplicates: bool = False  # keep documents that are equal to an earlier document
    # Drop a document if the Jaccard similarity of its shingles and an earlier document's is
    # estimated at this or more, over 0 and at most 1; None keeps all.
    near_duplicates: float | None = None
    validation: float = 0.0  # the share of documents that are held back, from 0 to under 1
    shard_tokens: int = 100_000_000  # tokens of a full shard

    def check(self) -> None:
        """Raise a DataError if a value is out of range, which types do not express."""
        near = self.near_duplicates
        for wrong, message in (
            (not 0 <= self.validation < 1, "validation: from 0 to under 1"),
            (near is not None and not 0 < near <= 1, "near-duplicates: over 0 and at most 1"),
            (self.shard_tokens < 1, "shard-tokens: at least 1"),
            (self.reading.max_chars < 1, "max-chars: at least 1"),
            (self.cleaning.min_chars < 0, "min-chars: at least 0"),
        ):
            if wrong:
                raise DataError(message, "Give another value.")
        check_encoding(self.reading.encoding)


@dataclass(frozen=True)
class CorpusProgress:
    """How far a preparation has come."""

    done: int  # bytes read from the sources; in other stages, what is done of them
    size: int  # bytes of all sources, Hub datasets count as 0; in other stages, all of them
    documents: int  # documents kept; until duplicates were found, with them
    tokens: int  # in these documents
    #: "reading", or, where workers do all, also "duplicates" (tasks done, of an unknown number) and
    #: "writing" (shards).
    stage: str = "reading"


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus."""

    folder: str  # the corpus
    train: Mapping[str, Any]  # its manifest
    # The manifest of the documents held back; None where none were asked for.
    validation: Mapping[str, Any] | None
    found: bool = False  # whether the corpus was there already


def prepare(
    sources: Sequence[str | Path],
    tokenizer: str | Path,
    output: str | Path,
    settings: Settings | None = None,
    *,
    engine: str = "processes",
    workers: int | None = None,
    restart: bool = False,
    on_progress: Callable[[CorpusProgress], None] = lambda progress: None,
) -> Prepared:
    """Read, clean and tokenize a corpus into a folder that `Corpus.open` reads.

    After a kill, the same call goes on where it was. The result depends only on sources, tokenizer
    and settings: not on engine and workers, nor on kills.

    Args:
        sources: files, folders, globs, Hub datasets (see `find_sources`).
        tokenizer: a folder or a file with a tokenizer, a run folder, `minilm` or a Hub id.
        output: the folder to make. If it is there, made by the same call, nothing is done. One in
            object storage (`s3://bucket/corpus`) is made in the cache, and sent when it is whole;
            its manifest comes last.
        settings: how to read and clean; default: `Settings()`.
        engine: "processes", or "ray": workers on a cluster read, compare and write.
        workers: number of processes that tokenize, or of workers; default: one for each core, of
            this machine or of the cluster.
        restart: forget an unfinished corpus of that name.
        on_progress: called after every batch or task.

    Raises:
        PretuneError: a source or the tokenizer cannot be used, a setting is wrong, the folder is
            taken, or a worker died.
    """
    settings = settings or Settings()
    settings.check()
    if engine not in ENGINES:
        raise PretuneError(f"no engine is called '{engine}'", did_you_mean(engine, ENGINES))
    origins = find_sources(sources)
    stored = url_of(output) if is_url(output) else None
    output = Path(os.path.abspath(output)) if stored is None else _aside(stored)
    loaded = find_tokenizer(tokenizer)
    try:
        work = _Preparation(origins, loaded, output, settings, engine, on_progress)
        if stored is not None and (there := work.manifests_in(stored)) is not None:
            return Prepared(stored, *there, found=True)
        with work.journal.locked():
            ready = work.is_ready()
            if ready:
                work.journal.clear()
            else:
                work.run(workers, restart)
            made = Prepared(stored or str(output), *work.manifests(), found=ready)
            if stored is not None:
                names = [f"{VALIDATION_SPLIT}/{CORPUS_MANIFEST}", CORPUS_MANIFEST]
                send_folder(output, stored, last=names)
                shutil.rmtree(output)
            return made
    except OSError as error:
        raise DataError(
            f"{output}: cannot be written ({error.strerror or error})",
            "Once that is fixed, the same command goes on where it stopped.",
        ) from error


def _aside(url: str) -> Path:
    """The folder in the cache where a corpus is made that is sent to object storage."""
    base = cache_folder()
    if base is None:
        raise DataError(
            f"{url}: there is no place to make it in, as PRETUNE_CACHE=off",
            "Name a folder with room for it: PRETUNE_CACHE=FOLDER.",
        )
    return base / "prepared" / hashlib.sha256(url.encode()).hexdigest()[:16]


class _Preparation:
    def __init__(
        self,
        sources: list[CorpusSource],
        tokenizer: Tokenizer,
        output: Path,
        settings: Settings,
        engine: str,
        on_progress: Callable[[CorpusProgress], None],
    ) -> None:
        self.sources, self.tokenizer, self.output = sources, tokenizer, output
        self.settings, self.engine, self.on_progress = settings, engine, on_progress
        if tokenizer.cutter is not None:
            raise CheckpointError(
                f"{tokenizer.origin}: the tokenizer of a translator (OPUS-MT) prepares no corpus",
                "Take one of a single file: a tokenizer.json, or one of `pretune tokenizer`.",
            )
        self.journal = Journal(output)
        self.dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self.splits = ["train"] + [VALIDATION_SPLIT] * (settings.validation > 0)
        self.unknown = tokenizer.special_id("unk_token")
        fingerprint = hashlib.sha256(tokenizer.engine.to_str(pretty=True).encode("utf-8"))
        self.identity = {
            "version": VERSION,
            "tokenizer": fingerprint.hexdigest(),  # of the file that `Tokenizer.save` writes
            "settings": asdict(settings),
            # The real paths, so that it does not matter how they are spelled.
            "sources": [(source.path, source.size, source.modified) for source in sources],
            "engine": engine,  # each has files of its own until the corpus is whole
        }
        self.counts, self.changed, self.dropped = Counter[str](), Counter[str](), Counter[str]()

    def is_ready(self) -> bool:
        """Whether the corpus is there already; a folder with anything else is a DataError."""
        if not self.output.exists() or (self.output.is_dir() and not any(self.output.iterdir())):
            return False
        self._check_same(Corpus.open(self.output).manifest, str(self.output))
        return True

    def manifests_in(self, url: str) -> tuple[Mapping[str, Any], Mapping[str, Any] | None] | None:
        """The manifests of the corpus in object storage; None where none is there.

        Raises:
            DataError: another corpus is there.
        """
        names = [self._folder(split, Path()) / CORPUS_MANIFEST for split in self.splits]
        places = [f"{url}/{name.as_posix()}" for name in names]
        # The one of the whole corpus is written last.
        if look_up(places[0]) is None:
            return None
        manifests = [read_manifest(local_copy(place)) for place in places if look_up(place)]
        self._check_same(manifests[0], url)
        return manifests[0], manifests[1] if len(manifests) > 1 else None

    def _check_same(self, manifest: Mapping[str, Any], place: str) -> None:
        """Raise a DataError unless a manifest is that of the corpus to be made."""
        wanted = json.loads(json.dumps(self.description()))
        same = {key: manifest[key] == wanted[key] for key in ("tokenizer", "settings")}
        entries = manifest["sources"]
        # Sources compare by real path, size and time of change.
        same["sources"] = len(entries) == len(self.sources) and all(
            source.matches(entry) for source, entry in zip(self.sources, entries, strict=True)
        )
        for key, is_same in same.items():
            if not is_same:
                raise DataError(
                    f"{place}: exists already, with {_OTHER[key]}",
                    "Choose another --output, or remove it first.",
                )

    def manifests(self) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
        """The manifests of the finished corpus and of its validation data."""
        train, *held = (Corpus.open(self._folder(split, self.output)) for split in self.splits)
        return train.manifest, held[0].manifest if held else None

    def description(self) -> dict[str, Any]:
        """The part of the manifest that all splits share."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": {"folder": TOKENIZER, "sha256": self.identity["tokenizer"]},
            "vocab_size": self.tokenizer.vocab_size,
            "dtype": self.dtype,
            "settings": asdict(self.settings),
            "sources": [source.to_dict() for source in self.sources],
        }

    def run(self, workers: int | None, restart: bool) -> None:
        """Make the corpus."""
        if restart:
            self.journal.clear()
        # Take up the state that the journal noted last.
        state = self.journal.read(self.identity) or {}
        encoder = EncoderSettings(
            self.tokenizer.engine.to_str(),
            self.dtype,
            self.settings.cleaning,
            signatures=self.settings.near_duplicates is not None,
            origin=self.tokenizer.origin,
        )
        if self.engine == "ray":
            self._run_on_ray(workers, encoder, state)
        else:
            self._run_in_processes(workers or usable_cores(), encoder, state)

    def _run_in_processes(
        self, workers: int, encoder: EncoderSettings, state: Mapping[str, Any]
    ) -> None:
        # What was noted: counts, kept documents, open shards.
        duplicates = Duplicates(
            exact=not self.settings.keep_duplicates, near=self.settings.near_duplicates
        )
        self.counts.update(state.get("counts", {}))
        self.changed.update(state.get("changed", {}))
        self.dropped.update(state.get("dropped", {}))
        self.kept = KeptDocuments(self.journal.folder, duplicates, state.get("kept", 0))
        self.writers = {split: self._writer(split, state) for split in self.splits}
        # Read on from there; encoders work ahead, and results come in the order of the documents.
        number, before = state.get("after", (0, 0))
        batches = _batches(self.sources, self.settings.reading, (number, before))
        size = sum(source.size for source in self.sources)
        last_note = time.monotonic()
        try:
            with closing(encode_batches(encoder, batches, workers)) as results:
                for batch, documents in results:
                    self._take(batch, documents, duplicates)
                    # Once in a while: note the state, so that a kill costs little.
                    if time.monotonic() - last_note >= NOTE_SECONDS:
                        self._note(batch.after)
                        last_note = time.monotonic()
                    kept, tokens = self.counts["documents"], self.counts["tokens"]
                    self.on_progress(CorpusProgress(batch.position, size, kept, tokens))
            train = self.writers["train"]
            self._check_left(bool(train.shards or train.open["documents"]))
            for writer in self.writers.values():
                writer.finish()
            self._finish({split: writer.shards for split, writer in self.writers.items()})
        finally:
            self.kept.close()
            for writer in self.writers.values():
                writer.close()

    def _run_on_ray(
        self, workers: int | None, encoder: EncoderSettings, state: Mapping[str, Any]
    ) -> None:
        work = self.journal.folder / "work"
        with tasks_on_ray(workers, self.journal.folder) as run:
            # The sizes of the first run hold for all: with others, parts would be other parts.
            if "sizes" not in state:
                total = sum(source.size for source in self.sources)
                piece = total // (_PIECES_EACH * (workers or cluster_size())) + 1
                piece = min(max(piece, _LEAST_PIECE), SIZES.piece)
                state = {"sizes": asdict(replace(SIZES, piece=piece))}
                self.journal.write(self.identity, state)
            sizes = WorkSizes(**state["sizes"])
            clean_up(work)
            job = Job(
                work,
                self.journal.out,
                sizes,
                self.settings.reading,
                encoder,
                self.unknown,
                not self.settings.keep_duplicates,
                self.settings.near_duplicates,
                self.settings.validation,
                tuple(self.splits),
                self.settings.shard_tokens,
            )
            pieces = plan_pieces(self.sources, self.settings.reading, sizes.piece)
            try:
                made = make_corpus(job, pieces, run, self._report)
            except DataError:
                if not any(work.glob("parts/[0-9]*")):  # there is nothing to go on from
                    self.journal.clear()
                raise
        self.counts, self.changed, self.dropped = made.counts, made.changed, made.dropped
        self._check_left(made.kept["train"] > 0)
        self._finish(made.shards)

    def _report(self, stage: str, done: int, size: int, documents: int, tokens: int) -> None:
        self.on_progress(CorpusProgress(done, size, documents, tokens, stage))

    @staticmethod
    def _folder(split: str, corpus: Path) -> Path:
        return corpus if split == "train" else corpus / split

    def _writer(self, split: str, state: Mapping[str, Any]) -> ShardWriter:
        return ShardWriter(
            self._folder(split, self.journal.out),
            self.journal.folder / f"positions-{split}",
            self.dtype,
            self.settings.shard_tokens,
            state.get("writers", {}).get(split),
        )

    def _take(
        self, batch: DocumentBatch, documents: list[EncodedDocument], duplicates: Duplicates
    ) -> None:
        # Dropped while reading, while encoding, or as duplicates: all are counted by reason.
        self.counts.update(read=batch.read, cut=batch.cut)
        self.dropped.update(batch.problems)
        if batch.bad_lines:
            self.changed["bad_lines"] += batch.bad_lines
        for document in documents:
            reason = document.dropped or duplicates.reason(document.digest, document.signature)
            if reason is not None:
                self.dropped[reason] += 1
                continue
            self.kept.add(document.digest, document.signature)
            # The digest alone decides the split, so equal texts never end up in both.
            held = held_back(document.digest, self.settings.validation)
            self.writers[VALIDATION_SPLIT if held else "train"].add(document)
            self.changed.update(document.changed)
            self.counts["documents"] += 1
            self.counts["tokens"] += len(document.tokens)
            self.counts["lost"] += document.lost
            if self.unknown is not None:
                self.counts["unknown"] += int(np.count_nonzero(document.tokens == self.unknown))

    def _note(self, after: tuple[int, int]) -> None:
        state = {
            "after": after,
            "counts": self.counts,
            "changed": self.changed,
            "dropped": self.dropped,
            "kept": self.kept.sync(),
            "writers": {split: writer.sync() for split, writer in self.writers.items()},
        }
        self.journal.write(self.identity, state)
        for writer in self.writers.values():
            writer.forget()

    def _check_left(self, any_left: bool) -> None:
        """Raise a DataError if all documents were dropped or held back, and say why."""
        if any_left:
            return
        self.journal.clear()
        if self.counts["documents"]:
            raise DataError(
                f"all documents that are left ({self.counts['documents']:,}) were held back "
                "for validation, and there is none to train on",
                "Give more text, or hold back less of it with --validation.",
            )
        dropped = sorted(self.dropped.items())
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped)
        raise DataError(
            f"no document is left of {self.counts['read']:,} (dropped: {reasons or 'none'})",
            "Give more text, or drop less of it.",
        )

    def _finish(self, made: Mapping[str, list[dict[str, Any]]]) -> None:
        for split, shards in made.items():
            folder = self._folder(split, self.journal.out)
            (folder / TOKENIZER).mkdir(exist_ok=True)
            self.tokenizer.save(folder / TOKENIZER)
            manifest = self.description() | {
                "split": split,
                "shards": shards,
                "totals": sum_counts(shards),
            }
            if split == "train":  # the counts of the reading are for all splits together
                manifest["reading"] = {
                    **{name: self.counts[name] for name in ("read", "cut", "unknown")},
                    # Characters that the tokenizer drops, as it has no [UNK]: most know all.
                    **({"lost": self.counts["lost"]} if self.counts["lost"] else {}),
                    "changed": dict(sorted(self.changed.items())),
                    "dropped": dict(sorted(self.dropped.items())),
                }
            text = json.dumps(manifest, ensure_ascii=False, indent=2)
            atomic_text(folder / CORPUS_MANIFEST, text + "\n")
        self.journal.publish(self.output)


def _batches(
    sources: list[CorpusSource], reading: ReadingOptions, after: tuple[int, int]
) -> Iterator[DocumentBatch]:
    """Read documents in batches; where batches end has no influence on the result.

    Begins with the source `after[0]`, and passes over its first `after[1]` documents.
    """
    meter = Meter()
    batch = DocumentBatch()
    for number, source in enumerate(sources):
        if number < after[0]:
            meter.next_file(source.size)
            continue
        skip = after[1] if number == after[0] else 0
        for index, document in enumerate(read_documents(source, reading, meter), start=1):
            if index <= skip:
                continue
            batch.add(document)
            if batch.full():
                batch.after, batch.position = (number, index), meter.done
                yield batch
                batch = DocumentBatch()
    batch.after, batch.position = (len(sources), 0), meter.done
    yield batch
