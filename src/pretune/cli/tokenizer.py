"""`pretune tokenizer`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result, to_stderr
from pretune.errors import PretuneError
from pretune.text.spoken_language import tr

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table
    from rich.text import Text

    from pretune.tokenizers.figures import TokenizerFigures
    from pretune.tokenizers.tokenizer import Tokenizer

#: The files in a tokenizer's folder. A folder with other files in it is never replaced.
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
TOKENIZER_FILES |= {"added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"}
#: MiB of text that the trainers of the tokenizers library can take.
MAX_SAMPLE_MB = 2047


@command(
    "tokenizer",
    "pretune tokenizer books/ --kind wordpiece --vocab-size 8000 -o tokenizers/books",
    "pretune tokenizer 'wiki/**/*.jsonl.gz' --field body --kind bpe --vocab-size 32000 -o wiki-bpe",
    "zcat huge.gz | pretune tokenizer - --kind char -o characters",
)
def tokenizer(
    corpus: Annotated[
        list[str],
        Argument(
            metavar="CORPUS",
            help="Text files, folders, patterns in quotes, or - for standard input. .jsonl has "
            "one record a line; .gz is unpacked.",
        ),
    ],
    output: options.OutputFolder,
    kind: Annotated[
        str,
        Option(help="wordpiece (BERT), bpe (GPT-2, on bytes), unigram (SentencePiece) or char."),
    ] = "wordpiece",
    vocab_size: Annotated[
        int | None,
        Option(
            min=1,
            help="Maximum number of entries. Default: 30522 for wordpiece, 50257 for bpe, "
            "32000 for unigram, all characters for char.",
        ),
    ] = None,
    lowercase: Annotated[
        bool | None,
        Option(
            "--lowercase/--cased",
            help="wordpiece: whether to drop case and accents (default: drop them); unigram: case "
            "(default: keep it).",
        ),
    ] = None,
    special: Annotated[
        list[str] | None, Option(help="An additional special token; may be repeated.")
    ] = None,
    min_frequency: Annotated[
        int, Option(min=1, help="Do not merge pairs that occur less often (wordpiece, bpe).")
    ] = 2,
    alphabet_size: Annotated[
        int | None,
        Option(min=1, help="Keep this many characters; rarer ones become [UNK]. Default: all."),
    ] = None,
    unknown: Annotated[
        bool, Option("--unk/--no-unk", help="char: whether [UNK] stands for other characters.")
    ] = True,
    sample_mb: Annotated[
        int,
        Option(
            min=1,
            max=MAX_SAMPLE_MB,
            help="Maximum MiB of text to train on, taken evenly from the corpus and held in "
            "memory.",
        ),
    ] = 1024,
    encoding: options.Encoding = "utf-8",
    field: Annotated[
        str | None, Option(help="The field with the text in JSONL records. Default: text.")
    ] = None,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace an existing tokenizer.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a tokenizer on raw text: WordPiece, byte-level BPE, Unigram or characters.

    The folder opens in pretune and, with AutoTokenizer, in transformers. The same corpus gives the
    same vocabulary (unigram: but for the last digits of its scores).
    """
    from pretune.tokenizers.train import DEFAULT_SIZES, check_options

    # Options and the output folder are checked before hours of work.
    training: dict[str, Any] = {"lowercase": lowercase, "special": special or ()}
    training |= {"alphabet_size": alphabet_size, "unknown": unknown}
    check_options(kind, **training)
    output = output.resolve()
    _check_output(output, overwrite)
    training |= {"vocab_size": vocab_size, "min_frequency": min_frequency}
    trained, facts, figures = _train(corpus, encoding, field, sample_mb << 20, kind, training)
    _write(trained, output)
    facts |= {"asked_for": vocab_size or DEFAULT_SIZES.get(kind), "folder": str(output)}
    result = {**facts, **asdict(figures)}
    print_result(result, *_view(facts, figures), as_json=as_json, saved=True)


def _train(
    corpus: list[str],
    encoding: str,
    field: str | None,
    max_bytes: int,
    kind: str,
    training: dict[str, Any],
) -> tuple[Tokenizer, dict[str, Any], TokenizerFigures]:
    """Return a tokenizer; facts about its corpus, JSON-ready; its figures on text held out."""
    from pretune.text.raw_text import find_files, iter_texts
    from pretune.text.text_sample import take_sample
    from pretune.tokenizers.figures import measure_tokenizer
    from pretune.tokenizers.train import train_tokenizer

    files = find_files(corpus)
    with _bar() as bar:
        # Read the corpus once and keep an even sample.
        on_disk = all(map(os.path.isfile, files))
        volume = sum(map(os.path.getsize, files)) if on_disk else None
        reading = bar.add_task(tr("reading"), total=volume)
        pieces = iter_texts(
            files, encoding=encoding, field=field, on_bytes=lambda n: bar.advance(reading, n)
        )
        sample = take_sample(pieces, max_bytes)
        bar.remove_task(reading)
        # Measure on text that was not trained on, if there is enough of it.
        part, rest = sample.split()
        held_out = rest is not part and kind != "char"  # single characters cannot be overfitted
        trained = train_tokenizer(
            part if held_out else sample.texts,
            kind,  # type: ignore[arg-type]
            characters_of=rest if held_out else (),
            progress=_stages(bar, len(sample.texts)),
            **training,
        )
        figures = measure_tokenizer(trained, rest)
    facts = {
        "kind": kind,
        "files": len(files),
        "bytes": sample.seen,
        "bytes_of_sample": sample.texts.bytes,
        "bytes_measured_on": rest.bytes,
        "held_out": held_out,
    }
    return trained, facts, figures


def _check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be overwritten, or that holds more than a tokenizer."""
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


def _write(trained: Tokenizer, output: Path) -> None:
    from pretune.checkpoints.atomic_io import atomic_folder
    from pretune.tokenizers.train import save_trained

    try:
        if not output.exists():
            with atomic_folder(output) as folder:
                save_trained(trained, folder)
            return
        # A folder cannot be renamed over one that is not empty: the old one makes way.
        new, old = (output.with_name(f".{output.name}.{os.getpid()}.{w}") for w in ("new", "old"))
        with atomic_folder(new) as folder:
            save_trained(trained, folder)
        os.rename(output, old)
        os.rename(new, output)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise PretuneError(f"{output}: cannot be written ({error.strerror})") from None


def _bar() -> Progress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

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
    """A callback that shows one bar for each stage of the training."""
    tasks: dict[str, TaskID] = {}

    def tell(stage: str, done: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bar.update(task, visible=False)
            tasks[stage] = bar.add_task(stage, total=None if stage == "merges" else texts)
        bar.update(tasks[stage], completed=done)

    return tell


def _view(facts: dict[str, Any], figures: TokenizerFigures) -> Iterator[Table | Text]:
    """Yield what to print about a trained tokenizer: its corpus, its figures, examples."""
    from rich.table import Column, Table
    from rich.text import Text

    # Where it comes from.
    read, used = facts["bytes"], facts["bytes_of_sample"]
    first = tr(
        f"{facts['kind']} tokenizer with {figures.vocab_size:,} entries, from {_mib(read)} of text "
        f"in {facts['files']:,} {'file' if facts['files'] == 1 else 'files'}"
    )
    sampled = tr(f" (an even sample of {_mib(used)})") if used < read else ""
    yield Text(first + sampled, "bold")
    # A small corpus may not have enough pairs for the size that was asked for.
    if facts["asked_for"] is not None and figures.vocab_size < facts["asked_for"]:
        wanted = f"{facts['asked_for']:,}"
        if facts["kind"] == "char":
            why = tr(f"fewer than the {wanted} asked for: the text has no more characters")
        else:
            why = tr(
                f"fewer than the {wanted} asked for: the text has no other pair that is frequent "
                "enough"
            )
        yield Text(why)
    # How well it does: few unknown tokens and many characters a token are good.
    size = _mib(facts["bytes_measured_on"])
    table = Table(
        tr(f"on {size} held out") if facts["held_out"] else tr(f"on {size} of the text trained on"),
        Column("", justify="right"),
        pad_edge=False,
    )
    table.add_row(tr("tokens that are [UNK]"), f"{figures.unknown:.3%}")
    table.add_row(tr("characters per token"), f"{figures.characters_per_token:.2f}")
    table.add_row(tr("bytes per token"), f"{figures.bytes_per_token:.2f}")
    yield table
    # What it learned first, and how it splits lines of the text.
    if figures.first:
        yield Text(tr("first merges") + "    " + _listed(figures.first))
        yield Text(tr("longest tokens") + "  " + _listed(figures.longest))
    for line, tokens in figures.examples:
        yield Text(f"\n{line}", "bold")
        yield Text(_listed(tokens))
    yield Text("\n" + tr(f"wrote {facts['folder']}"))


def _listed(tokens: tuple[str, ...]) -> str:
    """Tokens side by side, with spaces and invisible characters made visible."""
    return "  ".join(
        token.replace(" ", "␣") if token.isprintable() else repr(token)[1:-1] for token in tokens
    )


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB" if count >= 1_000_000 else f"{count / 1024:,.1f} KiB"
