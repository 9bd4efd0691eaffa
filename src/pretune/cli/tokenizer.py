"""`pretune tokenizer`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from pretune.cli.app import command, to_stderr, to_stdout
from pretune.cli.options import EncodingOption, JsonOption
from pretune.errors import PretuneError

if TYPE_CHECKING:
    from pretune.tokenizers.measure import TokenizerFigures
    from pretune.tokenizers.tokenizer import Tokenizer

#: What a tokenizer's folder holds. One that holds more is nobody's to be replaced.
TOKENIZER_FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
}
#: MiB of text; see `text.train.MOST_BYTES`.
MOST_MB = 2047


Corpus = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS...",
        help="Text files, folders, patterns in quotes, or - for standard input. .jsonl is one "
        "record a line; .gz is unpacked.",
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The most entries. Default: 30522 for wordpiece, 50257 for bpe, all characters for "
        "char.",
    ),
]
Lowercase = Annotated[
    bool | None,
    typer.Option(
        "--lowercase/--cased",
        help="wordpiece: whether case and accents are dropped. Default: they are.",
    ),
]
Special = Annotated[
    list[str] | None,
    typer.Option(help="A special token besides those of the kind; may be repeated."),
]
MinFrequency = Annotated[
    int, typer.Option(min=1, help="Pairs that occur less often are not merged.")
]
Alphabet = Annotated[
    int | None,
    typer.Option(min=1, help="Keep so many characters; rarer ones are [UNK]. Default: all."),
]
Unknown = Annotated[
    bool, typer.Option("--unk/--no-unk", help="char: whether [UNK] stands for other characters.")
]
SampleSize = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST_MB,
        help="The most text to train on, in MiB, spread evenly over the corpus; held in memory.",
    ),
]
Field = Annotated[
    str | None, typer.Option(help="Where the text is in JSONL records. Default: text.")
]


@command(
    "tokenizer",
    "pretune tokenizer books/ --kind wordpiece --vocab-size 8000 -o tokenizers/books",
    "pretune tokenizer 'wiki/**/*.jsonl.gz' --field body --kind bpe --vocab-size 32000 -o wiki-bpe",
    "zcat huge.gz | pretune tokenizer - --kind char -o characters",
)
def tokenizer(
    corpus: Corpus,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    kind: Annotated[
        str, typer.Option(help="wordpiece (BERT), bpe (GPT-2, on bytes) or char.")
    ] = "wordpiece",
    vocab_size: Size = None,
    lowercase: Lowercase = None,
    special: Special = None,
    min_frequency: MinFrequency = 2,
    alphabet_size: Alphabet = None,
    unknown: Unknown = True,
    sample_mb: SampleSize = 1024,
    encoding: EncodingOption = "utf-8",
    field: Field = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a tokenizer that is there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer on raw text: WordPiece, byte-level BPE or characters.

    The folder opens in pretune and, with AutoTokenizer, in transformers. The same corpus gives the
    same vocabulary.
    """
    from pretune.tokenizers.train import DEFAULT_SIZES, check_options, save_trained

    options: dict[str, Any] = {
        "lowercase": lowercase,
        "special": special or (),
        "alphabet_size": alphabet_size,
        "unknown": unknown,
    }
    check_options(kind, **options)
    output = output.resolve()
    _check_output(output, overwrite)
    options |= {"vocab_size": vocab_size, "min_frequency": min_frequency}
    trained, facts, found = _train(corpus, encoding, field, sample_mb << 20, kind, options)
    _write(trained, output, save_trained)
    facts |= {"asked_for": vocab_size or DEFAULT_SIZES.get(kind), "folder": str(output)}
    out = to_stdout()
    if as_json:
        out.print_json(data={**facts, **asdict(found)})
        return
    for part in _view(facts, found):
        out.print(part, soft_wrap=not isinstance(part, Table))


def _train(
    corpus: list[str],
    encoding: str,
    field: str | None,
    most: int,
    kind: str,
    options: dict[str, Any],
) -> tuple[Tokenizer, dict[str, Any], TokenizerFigures]:
    """The tokenizer, what it was made from, and what it does."""
    from pretune.text.raw_text import find_files, iter_texts
    from pretune.text.text_sample import take_sample
    from pretune.tokenizers.measure import measure_tokenizer
    from pretune.tokenizers.train import train_tokenizer

    files = find_files(corpus)
    with _bar() as bar:
        reading = bar.add_task("reading", total=_volume(files))
        pieces = iter_texts(
            files, encoding=encoding, field=field, on_bytes=lambda n: bar.advance(reading, n)
        )
        sample = take_sample(pieces, most)
        bar.remove_task(reading)
        part, rest = sample.split()
        held_out = rest is not part and kind != "char"  # single characters cannot be overfitted
        trained = train_tokenizer(
            part if held_out else sample.texts,
            kind,  # type: ignore[arg-type]
            characters_of=rest if held_out else (),
            progress=_stages(bar, len(sample.texts)),
            **options,
        )
        found = measure_tokenizer(trained, rest)
    facts = {
        "kind": kind,
        "files": len(files),
        "bytes": sample.seen,
        "bytes_of_sample": sample.texts.bytes,
        "bytes_measured_on": rest.bytes,
        "held_out": held_out,
    }
    return trained, facts, found


def _check_output(output: Path, overwrite: bool) -> None:
    """Said before the work and not after it."""
    if not output.exists():
        return
    if not output.is_dir():
        raise PretuneError(f"{output}: is a file, expected a folder", "Choose another name.")
    names = {path.name for path in output.iterdir()}
    others = sorted(names - TOKENIZER_FILES)
    if names and not overwrite:
        raise PretuneError(
            f"{output}: exists already",
            "Choose another folder" + (", or replace it with --overwrite." if not others else "."),
        )
    if others:
        raise PretuneError(
            f"{output}: holds more than a tokenizer ({', '.join(others[:3])})",
            "--overwrite replaces a whole folder; choose another one.",
        )


def _write(trained: Tokenizer, output: Path, save: Callable[[Tokenizer, Path], None]) -> None:
    from pretune.checkpoints.atomic_io import atomic_folder

    try:
        if not output.exists():
            with atomic_folder(output) as folder:
                save(trained, folder)
            return
        # A folder cannot be renamed over one that is not empty: the old one makes way.
        new, old = (output.with_name(f".{output.name}.{os.getpid()}.{w}") for w in ("new", "old"))
        with atomic_folder(new) as folder:
            save(trained, folder)
        os.rename(output, old)
        os.rename(new, output)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise PretuneError(f"{output}: cannot be written ({error.strerror})") from None


def _volume(files: list[str]) -> int | None:
    """Bytes on the disk, where all files are ones that have a size."""
    if not all(os.path.isfile(file) for file in files):
        return None
    return sum(os.path.getsize(file) for file in files)


def _bar() -> Progress:
    console = to_stderr()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _stages(bar: Progress, texts: int) -> Callable[[str, int], None]:
    """A bar for each stage of the training."""
    tasks: dict[str, TaskID] = {}

    def tell(stage: str, done: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[stage] = bar.add_task(stage, total=None if stage == "merges" else texts)
        bar.update(tasks[stage], completed=done)

    return tell


def _view(facts: dict[str, Any], found: TokenizerFigures) -> Iterator[Table | Text]:
    read, used = facts["bytes"], facts["bytes_of_sample"]
    yield Text(
        f"{facts['kind']} tokenizer with {found.vocab_size:,} entries, from {_mib(read)} of text "
        f"in {facts['files']:,} {'file' if facts['files'] == 1 else 'files'}"
        + (f" (an even sample of {_mib(used)})" if used < read else ""),
        "bold",
    )
    if facts["asked_for"] is not None and found.vocab_size < facts["asked_for"]:
        more = (
            "no more characters"
            if facts["kind"] == "char"
            else "no other pair that is frequent enough"
        )
        yield Text(f"fewer than the {facts['asked_for']:,} asked for: the text has {more}")
    table = Table(
        f"on {_mib(facts['bytes_measured_on'])} "
        + ("held out" if facts["held_out"] else "of the text trained on"),
        Column("", justify="right"),
        pad_edge=False,
    )
    table.add_row("tokens that are [UNK]", f"{found.unknown:.3%}")
    table.add_row("characters per token", f"{found.characters_per_token:.2f}")
    table.add_row("bytes per token", f"{found.bytes_per_token:.2f}")
    yield table
    if found.first:
        yield Text("first merges    " + _listed(found.first))
        yield Text("longest tokens  " + _listed(found.longest))
    for line, tokens in found.examples:
        yield Text(f"\n{line}", "bold")
        yield Text(_listed(tokens))
    yield Text(f"\nwrote {facts['folder']}")


def _listed(tokens: tuple[str, ...]) -> str:
    """Tokens apart; a space and what cannot be seen as one would write it in Python."""
    return "  ".join(
        token.replace(" ", "␣") if token.isprintable() else repr(token)[1:-1] for token in tokens
    )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB" if count >= 1_000_000 else f"{count / 1024:,.1f} KiB"
