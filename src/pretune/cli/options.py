"""Arguments and options that several commands have, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from pretune.cli import completion
from pretune.errors import PretuneError
from pretune.text.spoken_language import speaking

if TYPE_CHECKING:
    from pretune.bundle.bundle import Bundle
    from pretune.data.records import Records

Run = Annotated[
    str,
    Argument(
        metavar="RUN",
        help="A run folder, a model folder or a Hub id.",
        autocompletion=completion.models,
    ),
]
RECIPE = Argument(
    metavar="RECIPE_OR_FILE",
    help="A built-in recipe (see `pretune recipes`), a YAML file, or a labelled data file.",
    autocompletion=completion.recipes,
)
Recipe = Annotated[str, RECIPE]
LabelledData = Annotated[str, Argument(help="A labelled file, or a Hub dataset.")]
OutputFolder = Annotated[Path, Option("--output", "-o", help="The folder to write.")]
Overrides = Annotated[
    list[str] | None,
    Argument(
        metavar="KEY=VALUE",
        help="Values of the recipe to change.",
        autocompletion=completion.keys,
    ),
]
Columns = Annotated[
    list[str] | None,
    Option("--column", help="The data's name for a column, e.g. --column text=body."),
]
Encoding = Annotated[str, Option(help="Encoding of text files, e.g. gb18030.")]
Quoting = Annotated[
    str, Option(help="Quoting in CSV and TSV files: auto, standard (double quotes) or none.")
]
MaxChars = Annotated[
    int | None,
    Option(
        min=1,
        help="Refuse longer texts as a mistake. Default: 100,000 characters, or 100 million where "
        "the model reads a text in several windows.",
    ),
]
Limit = Annotated[int | None, Option(min=1, help="Use only this many records, from the first on.")]
TaskSet = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Change an option of the task, e.g. --set beams=1."),
]
Device = Annotated[str, Option(help="Where to compute: auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[
    str,
    Option(
        help="auto (float32 on a CPU, bf16 on CUDA), float32, bf16, or int8: products in 8 bits, "
        "on a CPU."
    ),
]
BatchTokens = Annotated[int, Option(min=1, help="Tokens at a time; changes memory and speed only.")]
AllowPickle = Annotated[
    bool,
    Option(
        "--allow-pickle",
        help="Also read pytorch_model.bin, with torch's restricted unpickler. Only for files from "
        "people you trust.",
    ),
]
Lang = Annotated[
    Literal["en", "zh"] | None,
    Option(
        "--lang",
        help="Language of the page, en or zh. Default: that of the terminal (PRETUNE_LANG, or the "
        "locale).",
    ),
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Show no progress.")]
DryRun = Annotated[bool, Option("--dry-run", help="Write nothing, show the table.")]
ReplaceModel = Annotated[bool, Option("--overwrite", help="Replace an earlier model there.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of tables.")]

# How text is generated: `generate` has defaults of its own, `chat` takes those of the model's task.
TEMPERATURE = Option(help="Above 1 more varied, below 1 safer; 0: always the most probable token.")
TOP_K = Option(help="Sample from the k most probable tokens only; 0: from all.")
TOP_P = Option(
    help="Sample from the most probable tokens that together have this probability; 1: from all."
)
REPETITION_PENALTY = Option(help="Above 1: tokens of the text so far become less probable.")
SAMPLING_SEED = Option(help="Seed of the sampling: the same seed gives the same text.")

#: The parameters that say how data are to be read.
_ABOUT_DATA = ("columns", "encoding", "quoting", "max_chars")


def page_language(lang: str | None) -> AbstractContextManager[None]:
    """Context in which a page is written in the language of `--lang`."""
    return nullcontext() if lang is None else speaking(lang)


def column_pairs(given: list[str] | None) -> dict[str, str]:
    """Parse the values of `--column`, name=column: our name of a column -> the data's name."""
    pairs = {}
    for text in given or []:
        ours, equals, theirs = text.partition("=")
        if not equals or not ours or not theirs:
            raise PretuneError(f"--column '{text}': expected name=column", "For example text=body.")
        pairs[ours] = theirs
    return pairs


def option_pairs(given: list[str] | None) -> dict[str, Any]:
    """Parse the values of `--set`, key=value, which are YAML as in a recipe."""
    if not given:
        return {}
    from pretune.recipe.recipe import parse_override

    return dict(parse_override(text) for text in given)


def check_utf8(called: str, texts: Sequence[str]) -> None:
    """Raise a PretuneError for a text of the command line with bytes that are not UTF-8.

    Python puts half of a surrogate pair, 0xDC80 to 0xDCFF, in the place of each (PEP 383).
    """
    for number, text in enumerate(texts, start=1):
        place = next((i for i, mark in enumerate(text) if 0xDC80 <= ord(mark) <= 0xDCFF), None)
        if place is not None:
            which = f"{called} {number}" if len(texts) > 1 else called
            raise PretuneError(
                f"{which}: the byte 0x{ord(text[place]) - 0xDC00:02x}, at character {place + 1}, "
                "is not UTF-8",
                "Give the text in UTF-8, or in a file whose encoding you name (--encoding).",
            )


def written_folder(output: Path | None, *, dry_run: bool) -> Path | None:
    """The folder that a command writes, by `--output` and `--dry-run`, of which it needs one."""
    if (output is None) != dry_run:
        raise PretuneError(
            "--dry-run writes nothing" if dry_run else "where to write it is not known",
            "Leave out --output or --dry-run." if dry_run else "Name a folder: --output FOLDER.",
        )
    return output


def records_to_examine(
    context: typer.Context, run: str, bundle: Bundle, data: str | None
) -> Records:
    """Read the data that a command names, as its options say, or the validation data of a run."""
    from pretune.cli.app import print_notes
    from pretune.inference.predict import column_names, task_of
    from pretune.training.data import examined_records

    given = {name: context.params[name] for name in _ABOUT_DATA}
    given["columns"] = column_names(bundle, column_pairs(given["columns"]))
    records = examined_records(run, task_of(bundle), data, **given)
    print_notes(records)
    return records


def examples_to_judge(
    context: typer.Context, run: str, bundle: Bundle, data: str
) -> Records | list[str]:
    """Read what a model is judged on: labelled records; for a model without a task, texts."""
    from pretune.cli.app import print_notes
    from pretune.inference.embed import read_texts

    limit = context.params["limit"]
    if bundle.task is not None:
        return records_to_examine(context, run, bundle, data).head(limit)
    encoding, quoting = (context.params[name] for name in ("encoding", "quoting"))
    column = column_pairs(context.params["columns"]).get("text")
    records, texts, _ = read_texts(data, column=column, encoding=encoding, quoting=quoting)
    print_notes(records)
    return texts[:limit]


def only_with_data(
    context: typer.Context, data: str | None, called: str, *, validation: bool = True
) -> None:
    """Refuse options that say how to read data where no data are named by the option `called`.

    Args:
        context: of the command.
        data: that are named.
        called: the option that names them.
        validation: whether a run's validation data take their place, of which some may be read.
    """
    about = _ABOUT_DATA if validation else (*_ABOUT_DATA, "limit")
    for parameter in context.command.params if data is None else ():
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in about and source is not None and source.name == "COMMANDLINE":
            none = f"{parameter.opts[0]} is about {called}, and there is none"
            raise PretuneError(
                f"{none}: the validation data are read as their run's recipe says"
                if validation
                else none,
                f"Leave it out, or name the data: {called}.",
            )
