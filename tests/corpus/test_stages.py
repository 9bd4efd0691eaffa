"""A corpus made by workers beside the same corpus made by one process: every file is equal."""

from __future__ import annotations

import gzip
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from pretune.corpus import pipeline
from pretune.corpus.documents import CorpusSource, ReadingOptions, Span, find_sources
from pretune.corpus.encode import Cleaning
from pretune.corpus.pieces import exact_span, plan_pieces
from pretune.corpus.pipeline import CorpusProgress, Settings, prepare
from pretune.corpus.stages import shard_begins
from pretune.errors import DataError
from tests.corpus.conftest import contents

SMALL = Settings(shard_tokens=1500, validation=0.1, near_duplicates=0.5)


@pytest.fixture(scope="module")
def texts_file(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 documents, a tenth of them duplicates, and 24 that are each like the one before."""
    texts = corpus_file.read_text(encoding="utf-8").split("\n\n")[:300]
    words = [f"w{number}" for number in range(400)]
    chain = [" ".join(words[12 * i : 12 * i + 60]) for i in range(24)]
    for number, text in enumerate(chain):
        texts.insert(11 * number, text)
    path = tmp_path_factory.mktemp("chained") / "texts.txt"
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def both(
    tmp_path: Path, sources: list[Path], tokenizer: Path, settings: Settings
) -> tuple[dict[str, str], dict[str, str]]:
    """The files of the corpus that one process makes, and of the one that workers make."""
    prepare(sources, tokenizer, tmp_path / "one" / "c", settings, workers=1)
    prepare(sources, tokenizer, tmp_path / "many" / "c", settings, engine="ray")
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["c"]
    return contents(tmp_path / "one" / "c"), contents(tmp_path / "many" / "c")


def made_of(folder: Path) -> list[Path]:
    return sorted((folder / ".c.unfinished" / "work" / "parts").glob("[0-9]*"))


# ------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        SMALL,
        Settings(keep_duplicates=True),
        Settings(keep_duplicates=True, near_duplicates=0.5, shard_tokens=1),
        Settings(near_duplicates=1.0, shard_tokens=100),
        Settings(validation=0.5, shard_tokens=5000),
        Settings(ReadingOptions(max_chars=30), Cleaning(min_chars=10), near_duplicates=0.7),
        Settings(ReadingOptions(documents="line"), Cleaning(repeated_lines=True)),
        Settings(ReadingOptions(documents="file"), shard_tokens=2700),
        Settings(cleaning=Cleaning(nfc=False, spaces=False, join_lines=True), near_duplicates=0.8),
    ],
    ids=lambda settings: "",
)
def test_settings(
    tmp_path: Path, texts_file: Path, bpe_folder: Path, workers_here: Any, settings: Settings
) -> None:
    one, many = both(tmp_path, [texts_file], bpe_folder, settings)
    assert many == one


def test_small_parts_in_many_tasks(
    tmp_path: Path, texts_file: Path, bpe_folder: Path, workers_here: Callable[..., None]
) -> None:
    workers_here(piece=1500, partition=80, states=40, run=60)
    reports: list[CorpusProgress] = []

    def watch(progress: CorpusProgress) -> None:
        reports.append(progress)
        if progress.stage == "writing" and not tasks:
            work = tmp_path / ".c.unfinished" / "work"
            tasks.update({path.name: len(list(path.iterdir())) for path in work.iterdir()})

    tasks: dict[str, int] = {}
    prepare([texts_file], bpe_folder, tmp_path / "c", SMALL, engine="ray", on_progress=watch)
    assert tasks["parts"] > 10
    assert tasks["equal"] > 3
    assert tasks["states-1"] > 5
    assert tasks["buckets-1"] > 10
    assert tasks["rest-3"] == 1
    stages = [report.stage for report in reports]
    assert sorted(set(stages), key=stages.index) == ["reading", "duplicates", "writing"]
    read = [report for report in reports if report.stage == "reading"][-1]
    assert read.done == read.size == texts_file.stat().st_size
    manifest = json.loads((tmp_path / "c" / "corpus.json").read_text())
    held = json.loads((tmp_path / "c" / "validation" / "corpus.json").read_text())
    prepare([texts_file], bpe_folder, tmp_path / "one", SMALL, workers=1)
    assert contents(tmp_path / "c") == contents(tmp_path / "one")
    last = reports[-1]
    assert last.done == last.size == len(manifest["shards"]) + len(held["shards"])
    assert last.documents == manifest["totals"]["documents"] + held["totals"]["documents"]
    assert last.tokens == manifest["totals"]["tokens"] + held["totals"]["tokens"]


def test_no_size_changes_the_corpus(
    tmp_path: Path, texts_file: Path, bpe_folder: Path, workers_here: Callable[..., None]
) -> None:
    made = []
    for number, piece in enumerate((700, 10_000, 10**9)):
        workers_here(piece=piece, run=7 + 1000 * number, partition=200 + 10**5 * number)
        prepare([texts_file], bpe_folder, tmp_path / str(number), SMALL, engine="ray")
        made.append(contents(tmp_path / str(number)))
    assert made[0] == made[1] == made[2]


def test_equal_but_for_the_normal_form(tmp_path: Path, bpe_folder: Path, workers_here: Any) -> None:
    """Equal digests with other signatures: the words of `café` depend on how it is typed."""
    words = [f"caf\u00e9 na\u00efve w{i}" for i in range(40)]
    texts = [" ".join(words[i : i + 9]) for i in range(0, 30, 3)]
    typed = [text.replace("\u00e9", "e\u0301").replace("\u00ef", "i\u0308") for text in texts]
    generator = random.Random(1)
    mixed = generator.choices(texts + typed, k=60) + [text.upper() for text in texts]
    (tmp_path / "t.txt").write_text("\n\n".join(mixed), encoding="utf-8")
    raw = Settings(cleaning=Cleaning(nfc=False), near_duplicates=0.6)
    one, many = both(tmp_path, [tmp_path / "t.txt"], bpe_folder, raw)
    assert many == one
    reading = json.loads((tmp_path / "many" / "c" / "corpus.json").read_text())["reading"]
    assert min(reading["dropped"].values()) > 3
    assert set(reading["dropped"]) == {"duplicate", "near-duplicate"}


# ------------------------------------------------------------------------------ formats


def lines(count: int = 250) -> list[str]:
    generator = random.Random(2)
    words = ["the", "good", "film", "好", "电影", "caf\u00e9", "\U0001f600", "\u3000", "x" * 30]
    texts = [" ".join(generator.choices(words, k=generator.randint(1, 9))) for _ in range(count)]
    return [*texts, *generator.choices(texts, k=50)]


SKIP = ReadingOptions(errors="skip")


@pytest.mark.parametrize("options", [SKIP, ReadingOptions(errors="skip", documents="line")])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\n\n", "\n\r\n", "\n \n", "\n\n\n\n\r"])
def test_texts(
    tmp_path: Path, bpe_folder: Path, workers_here: Any, ends: str, options: ReadingOptions
) -> None:
    """Bytes that are not UTF-8 stand before line ends, within lines and in the middle of marks."""
    raw = ends.join(lines()).encode()
    generator = random.Random(3)
    for bad in (b"\xff", b"\xe4", b"\n", b"\r", b"\n\n", b"\xef\xbb\xbf", b"\x00"):
        for _ in range(3):
            place = generator.randrange(1000, len(raw))
            raw = raw[:place] + bad + raw[place:]
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + raw)
    one, many = both(tmp_path, [tmp_path / "t.txt"], bpe_folder, Settings(options))
    assert many == one


def test_json_lines(tmp_path: Path, bpe_folder: Path, workers_here: Any) -> None:
    rows = [json.dumps({"text": text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(lines())]
    rows[20] = "{"
    rows[50] = "[1]"
    rows[90] = '{"other": 1}'
    rows[91] = ""
    rows[200] = '{"text": "\\ud83d"}'
    raw = "\r\n".join(rows).encode()
    (tmp_path / "t.jsonl").write_bytes(raw[:5000] + b"\xff" + raw[9000:])
    one, many = both(tmp_path, [tmp_path / "t.jsonl"], bpe_folder, Settings(SKIP))
    assert many == one


def test_parquet(tmp_path: Path, bpe_folder: Path, workers_here: Any) -> None:
    table = arrow.table({"text": [None, *lines()], "other": list(range(301))})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=33)
    (source,) = find_sources([tmp_path / "t.parquet"])
    assert len(plan_pieces([source], SKIP, 3000)) > 3
    one, many = both(tmp_path, [tmp_path / "t.parquet"], bpe_folder, Settings(SKIP))
    assert many == one
    with pytest.raises(DataError, match=r"t\.parquet, row 1, field 'text': expected a text"):
        prepare([tmp_path / "t.parquet"], bpe_folder, tmp_path / "c", engine="ray")


def test_many_files_of_all_kinds(tmp_path: Path, bpe_folder: Path, workers_here: Any) -> None:
    """Small ones are read together; packed ones, and those in UTF-16, are never cut."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.txt").write_text("\n\n".join(lines(number + 1)), encoding="utf-8")
    with gzip.open(folder / "05.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps({"text": text}) + "\n" for text in lines(900))
    (folder / "06.md").write_bytes(b"")
    parquet.write_table(arrow.table({"text": lines()}), folder / "07.parquet")
    sources = find_sources([folder])
    pieces = plan_pieces(sources, ReadingOptions(), 3000)
    assert [part.source.path for piece in pieces for part in piece] == sorted(
        part.source.path for piece in pieces for part in piece
    )
    assert max(len(piece) for piece in pieces) > 1
    packed = [part for piece in pieces for part in piece if part.source.name.endswith(".gz")]
    assert [part.span for part in packed] == [None]
    assert packed[0].size > 3000
    one, many = both(tmp_path, [folder], bpe_folder, SMALL)
    assert many == one


def test_wide_characters_are_not_cut(tmp_path: Path, bpe_folder: Path, workers_here: Any) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join(lines()), encoding="utf-16")
    settings = Settings(ReadingOptions(encoding="utf-16"))
    one, many = both(tmp_path, [tmp_path / "t.txt"], bpe_folder, settings)
    assert many == one


@pytest.mark.parametrize("documents", ["line", "blank-line"])
def test_spans_are_the_file_end_to_end(tmp_path: Path, documents: str) -> None:
    """Whatever the text, and wherever it is cut: no byte twice, none left out."""
    generator = random.Random(4)
    path = tmp_path / "t.txt"
    for _ in range(300):
        raw = bytes(generator.choices(b"a\n\r", weights=(3, 3, 1), k=generator.randint(8, 60)))
        path.write_bytes(raw)
        source = CorpusSource(str(path), "text", len(raw))
        options = ReadingOptions(documents=documents)
        edges = sorted({0, len(raw), *generator.sample(range(len(raw)), 3)})
        nominal = [Span(a, b) for a, b in pairwise(edges)]
        spans = [span for n in nominal if (span := exact_span(source, options, n)) is not None]
        assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
        assert (spans[0].start, spans[-1].stop) == (0, len(raw))
        mark = (b"\n\n", b"\n\r\n") if documents == "blank-line" else (b"\n",)
        assert all(raw[: span.start].endswith(mark) for span in spans[1:])
        # The first place of that kind, if there is one before the next cut.
        for before in nominal:
            if before.start == 0:
                continue
            first = min(
                (p for p in range(before.start, len(raw)) if raw[:p].endswith(mark)), default=None
            )
            assert first is None or first in {s.start for s in spans} or first >= spans[-1].stop


def test_a_mark_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pretune.corpus import pieces

    raw = b"a" * 20 + b"\n\r\n" + b"b" * 30
    (tmp_path / "t.txt").write_bytes(raw)
    source = CorpusSource(str(tmp_path / "t.txt"), "text", len(raw))
    for look in range(1, 9):
        monkeypatch.setattr(pieces, "_LOOK", look)
        for start in range(1, 30):
            span = exact_span(source, ReadingOptions(), Span(start, 40))
            assert span == (Span(23, len(raw)) if start <= 23 else None)


# ------------------------------------------------------------------------------ shards


def test_shards_begin_where_a_writer_begins_them() -> None:
    assert shard_begins([np.array([5, 5, 1]), np.array([], int), np.array([30, 2, 8, 1])], 10) == [
        (0, 0),
        (0, 2),
        (2, 0),
        (2, 1),
        (2, 3),
    ]
    assert shard_begins([np.array([], int)], 10) == []


# ------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_the_first_bad_line_is_named(
    tmp_path: Path, bpe_folder: Path, workers_here: Any, kind: str
) -> None:
    """Though later pieces fail earlier, and count their lines from their beginning."""
    rows = lines() if kind == "txt" else [json.dumps({"text": text}) for text in lines()]
    raw = "\n\n".join(rows).encode().split(b"\n")
    raw[300] += b"\xff"
    raw[500] += b"\xff"
    (tmp_path / f"t.{kind}").write_bytes(b"\n".join(raw))
    for engine in ("processes", "ray"):
        with pytest.raises(DataError, match=r"t\.\w+, line 301: not valid UTF-8"):
            prepare(
                [tmp_path / f"t.{kind}"], bpe_folder, tmp_path / engine, engine=engine, workers=1
            )
    assert not (tmp_path / "ray").exists()


def test_an_error_at_once_leaves_nothing(
    tmp_path: Path, bpe_folder: Path, workers_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_LEAST_PIECE", 100)
    (tmp_path / "t.txt").write_bytes(b"fine\n\n\xff")
    with pytest.raises(DataError, match="line 3"):
        prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", engine="ray")
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_nothing_left(tmp_path: Path, bpe_folder: Path, workers_here: Any) -> None:
    (tmp_path / "t.txt").write_text("a\n\nb\n\na")
    short = Settings(cleaning=Cleaning(min_chars=5))
    with pytest.raises(DataError, match=r"no document is left of 3 \(dropped: 3 short\)"):
        prepare([tmp_path / "t.txt"], bpe_folder, tmp_path / "c", short, engine="ray")
    with pytest.raises(DataError, match=r"\(2\) were held back(.|\n)*--validation"):
        prepare(
            [tmp_path / "t.txt"],
            bpe_folder,
            tmp_path / "c",
            Settings(validation=0.999),
            engine="ray",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


class StopError(Exception):
    """The work is given up."""


def stop_at(stage: str) -> Callable[[CorpusProgress], None]:
    def watch(progress: CorpusProgress) -> None:
        if progress.stage == stage:
            raise StopError

    return watch


def unfinished(
    tmp_path: Path,
    texts_file: Path,
    bpe_folder: Path,
    stage: str = "writing",
    engine: str = "ray",
    workers: int | None = None,
) -> Path:
    """An output of which the work stopped in a stage."""
    with pytest.raises(StopError):
        prepare(
            [texts_file],
            bpe_folder,
            tmp_path / "c",
            SMALL,
            engine=engine,
            workers=workers,
            on_progress=stop_at(stage),
        )
    return tmp_path / "c"


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_another_engine_does_not_go_on(
    tmp_path: Path,
    texts_file: Path,
    bpe_folder: Path,
    workers_here: Any,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
) -> None:
    monkeypatch.setattr(pipeline, "NOTE_SECONDS", 0)
    other = "ray" if engine == "processes" else "processes"
    unfinished(tmp_path, texts_file, bpe_folder, "reading", other, workers=1)
    with pytest.raises(DataError, match=r"unfinished corpus with another engine(.|\n)*--restart"):
        prepare([texts_file], bpe_folder, tmp_path / "c", SMALL, engine=engine, workers=1)
    prepare([texts_file], bpe_folder, tmp_path / "c", SMALL, engine=engine, workers=1, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("parts/00003/shard-00000.tokens.bin", "cut"),
        ("parts/00003/digests.bin", "cut"),
        ("parts/00003/task.json", "cut"),
        ("parts/00003/task.json", "gone"),
        ("parts/00003/shard-00000.tokens.bin", "changed"),
        ("parts/00003/shard-00000.sentences.npy", "changed"),
        ("bands/00002/bands.bin", "cut"),
        ("kept/00001/rows-train.bin", "gone"),
    ],
)
def test_damage_is_noticed_and_mended(
    tmp_path: Path, texts_file: Path, bpe_folder: Path, workers_here: Any, name: str, damage: str
) -> None:
    output = unfinished(tmp_path, texts_file, bpe_folder)
    path = tmp_path / ".c.unfinished" / "work" / name
    raw = path.read_bytes()
    # A change that a sum of bytes would not see.
    changes = {"cut": raw[:-1], "changed": raw[:-8] + raw[-4:] + raw[-8:-4]}
    if damage == "gone":
        path.unlink()
    else:
        assert changes[damage] != raw
        path.write_bytes(changes[damage])
    # What was stopped in the last stage has shards already; they are made of the parts again.
    for shards in (tmp_path / ".c.unfinished" / "work").glob("shards-*/*"):
        (shards / "task.json").unlink()
        shards.rmdir()
    with pytest.raises(DataError, match=f"{path.parent.name}.*damaged(.|\n)*Remove"):
        prepare([texts_file], bpe_folder, output, SMALL, engine="ray")
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    prepare([texts_file], bpe_folder, output, SMALL, engine="ray")
    prepare([texts_file], bpe_folder, tmp_path / "one", SMALL, workers=1)
    assert contents(output) == contents(tmp_path / "one")


def test_what_is_done_is_not_done_again(
    tmp_path: Path, texts_file: Path, bpe_folder: Path, workers_here: Callable[..., None]
) -> None:
    """Also with other sizes, which would cut the sources elsewhere."""
    output = unfinished(tmp_path, texts_file, bpe_folder, "duplicates")
    work = tmp_path / ".c.unfinished" / "work"
    before = {path: path.stat().st_mtime_ns for path in work.glob("parts/*/*")}
    assert len(before) > 30
    (work / "parts" / ".00001.left.tmp").mkdir()
    workers_here(piece=10**9)
    seen = {}

    def watch(progress: CorpusProgress) -> None:
        seen.update({path: path.stat().st_mtime_ns for path in work.glob("parts/*/*")})

    prepare([texts_file], bpe_folder, output, SMALL, engine="ray", on_progress=watch)
    assert seen == before


KILLED = """
import os, signal, sys
from pretune.corpus import pipeline
from pretune.corpus.pipeline import Settings, prepare
from pretune.corpus.staged import WorkSizes
from tests.corpus.conftest import tasks_here

source, tokenizer, output, *stages = sys.argv[1:]
pipeline.tasks_on_ray, pipeline.cluster_size = tasks_here, lambda: 1
pipeline._LEAST_PIECE = 1
pipeline.SIZES = WorkSizes(piece=3000, run=100, partition=800, rest=5, states=150)
settings = Settings(shard_tokens=1500, validation=0.1, near_duplicates=0.5)
os.fsync = lambda descriptor: None
rename, replace = os.rename, os.replace

def kill_at(stage, when):
    left = 2 if stage in ("parts", "buckets-1", "shards-train", "out/shard") else 1
    def counted(function):
        def call(source, target):
            nonlocal left
            left -= f"/{stage}" in str(target)
            if left == 0 and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            function(source, target)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call
    os.rename, os.replace = counted(rename), counted(replace)

for kill in [*stages, ""]:
    child = os.fork()  # nothing has started a thread yet
    if child == 0:
        if kill:
            kill_at(*kill.split(":"))
        prepare([source], tokenizer, output, settings, engine="ray")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_killed_in_every_stage_it_is_the_same(
    tmp_path: Path, texts_file: Path, bpe_folder: Path
) -> None:
    """By SIGKILL, before and after a result gets its name."""
    stages = [
        *("parts:before", "parts:after", "equal:after", "bands:before", "buckets-1:before"),
        *("buckets-1:after", "states-1:after", "buckets-2:before", "states-2:before"),
        *("rest-2:before", "rest-2:after", "kept:before", "layout:after"),
        # The tasks run from the last to the first here.
        *("shards-validation:before", "out/shard:after", "shards-train:after"),
        "out/corpus.json:before",
    ]
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "c"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(texts_file), str(bpe_folder), str(output), *stages],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    codes = [-signal.SIGKILL] * len(stages) + [0]
    assert (done.stdout.split(), done.stderr) == ([str(code) for code in codes], "")
    prepare([texts_file], bpe_folder, tmp_path / "one", SMALL, workers=1)
    assert contents(output) == contents(tmp_path / "one")
    assert [path.name for path in output.parent.iterdir()] == ["c"]
