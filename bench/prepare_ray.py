"""`pretune prepare --engine ray`: processor time of who started it and of the workers, and memory.

    PRETUNE_DATA=FOLDER python bench/prepare_ray.py [--documents 20000 80000] [--workers 1 2]

Paragraphs of English novels (gutenberg-en), in other orders again and again as long as there have
to be more, with exact and near-duplicates dropped. Every corpus is compared with what one process
makes, byte for byte. Shown are seconds of processor time, which do not depend on what else the
machine does: of the process that calls `prepare`, beyond starting Ray, and of Ray's workers. Its
peak memory includes Ray's and pretune's libraries.

The last line is a model and no measurement: 1 TB on 64 workers, by what the larger corpus took
beyond the smaller one, with pieces of 128 MiB instead of 1 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse, record

from pretune.host import peak_memory

NEAR = 0.8
#: Bytes of a piece in the bench, so that there are some; and of a large corpus.
PIECE, LARGE_PIECE = 2**20, 128 * 2**20


def write_documents(path: Path, count: int) -> None:
    """Write so many paragraphs; those that come again have other words at every sixth place."""
    novels = sorted((Path(os.environ["PRETUNE_DATA"]) / "gutenberg-en").glob("*.txt"))
    generator = random.Random(0)  # noqa: S311
    paragraphs = [
        " ".join(paragraph.split())
        for novel in novels
        for paragraph in novel.read_text("utf-8").split("\n\n")
        if len(paragraph) > 200
    ]
    words = " ".join(paragraphs[:2000]).split()
    with path.open("w", encoding="utf-8") as handle:
        for number in range(count):
            text = paragraphs[number % len(paragraphs)].split()
            if number >= len(paragraphs):
                text = [generator.choice(words) if i % 6 == 0 else w for i, w in enumerate(text)]
            if number % 20 == 19:  # like one that came before, but for two words
                text = paragraphs[generator.randrange(number) % len(paragraphs)].split()
                text += ["and", "so"]
            handle.write(" ".join(text) + "\n\n")


def workers_seconds() -> float:
    """Processor time of the workers that Ray has started, in seconds."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            is_worker = status.with_name("cmdline").read_bytes().startswith(b"ray::")
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        if is_worker:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def prepare_once(source: Path, output: Path, workers: int) -> None:
    """Prepare a corpus and print what it took; `workers` 0 is the single process."""
    from pretune.corpus import pipeline
    from pretune.corpus.pipeline import CorpusProgress, Settings, prepare
    from pretune.corpus.staged import WorkSizes

    settings = Settings(near_duplicates=NEAR, validation=0.01, shard_tokens=1_000_000)
    seen = {"tasks": 0, "workers": 0.0}
    if workers:
        import ray

        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        pipeline.SIZES = WorkSizes(piece=PIECE)

    def watch(progress: CorpusProgress) -> None:
        seen["tasks"] += 1
        if progress.stage == "writing" and progress.done == progress.size:
            seen["workers"] = workers_seconds()

    before = time.process_time()
    engine = "ray" if workers else "processes"
    prepare(
        [source], "minilm", output, settings, engine=engine, workers=workers or 1, on_progress=watch
    )
    own = time.process_time() - before
    # Without workers all the time is its own.
    print("RESULT", own, seen["workers"], seen["tasks"], peak_memory())


def digest_of(folder: Path) -> str:
    """One hash of all files of a corpus and their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def measure(source: Path, output: Path, workers: int) -> dict[str, float]:
    """A corpus in a process of its own."""
    arguments = [sys.executable, __file__, "--one", str(source), str(output), str(workers)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    own, others, tasks, memory = map(float, line.split()[1:])
    return {"own": own, "workers": others, "tasks": tasks, "memory": memory}


def main() -> None:
    """Measure and print a table and a model."""
    if sys.argv[1:2] == ["--one"]:
        prepare_once(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parse(parser)
    results: dict[tuple[int, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for count in options.documents:
            source = folder / f"{count}.txt"
            write_documents(source, count)
            for workers in [0, *options.workers]:
                output = folder / f"{count}-{workers}"
                made = measure(source, output, workers) | {"size": source.stat().st_size}
                if digest_of(output) != digest_of(folder / f"{count}-0"):
                    raise SystemExit(f"{count} documents, {workers} workers: another corpus")
                results[count, workers] = made
                show(count, workers, made)
    if len(options.documents) > 1:
        few, many = (results[count, options.workers[0]] for count in options.documents[-2:])
        print(f"\n{model(few, many)}")


def show(count: int, workers: int, made: dict[str, float]) -> None:
    """Print a row, and keep its figures."""
    name = f"{workers} workers" if workers else "one process"
    share = made["own"] / (made["own"] + made["workers"])
    if len(_shown) == 0:
        print("| documents | | starter, s | workers, s | starter's share | its peak, MB |")
        print("|---|---|---|---|---|---|")
    _shown.append(name)
    print(
        f"| {count:,} | {name} | {made['own']:.2f} | {made['workers']:.1f} | {share:.1%} "
        f"| {made['memory'] / 2**20:.0f} |",
        flush=True,
    )
    for what in ("own", "workers", "memory"):
        unit = "bytes" if what == "memory" else "s"
        values = {name: [made[what]]}
        record(f"prepare {count:,} documents: {what}", unit, values, name, lower=True)


_shown: list[str] = []


def model(few: dict[str, float], many: dict[str, float]) -> str:
    """What 1 TB would take, by what the larger corpus took beyond the smaller one."""
    size, work, own = (many[key] - few[key] for key in ("size", "workers", "own"))
    total = work * 1e12 / size
    starter = own * (PIECE / LARGE_PIECE) * 1e12 / size
    return (
        f"1 TB on 64 workers, a model: {total / 3600:,.0f} hours of processors, that is "
        f"{total / 64 / 3600:,.1f} hours; {starter:,.0f} s of the starter, {starter / total:.3%}"
    )


if __name__ == "__main__":
    main()
