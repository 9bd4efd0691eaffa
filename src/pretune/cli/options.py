"""Arguments and options that several commands have, and how their values are read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pretune.errors import PretuneError

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, a model folder or a Hub id.")
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_FILE",
        help="A built-in recipe (see `pretune recipes`), a YAML file, or a labelled data file.",
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values of the recipe to change."),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", help="The data's name for a column, e.g. --column text=body."),
]
EncodingOption = Annotated[str, typer.Option(help="Encoding of text files, e.g. gb18030.")]
QuotingOption = Annotated[
    str, typer.Option(help="Quoting in CSV and TSV files: auto, standard (double quotes) or none.")
]
MaxCharsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Refuse longer texts as a mistake. Default: 100,000 characters, or 100 million where "
        "the model reads a text in several windows.",
    ),
]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="Use only this many records, from the first on.")
]
TaskSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change an option of the task, e.g. --set beams=1."
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:1 or mps.")
]
BatchTokensOption = Annotated[
    int, typer.Option(min=1, help="Tokens at a time; changes memory and speed only.")
]
PickleOption = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Also read pytorch_model.bin, with torch's restricted unpickler. Only for files from "
        "people you trust.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]

# How text is generated: `generate` has defaults of its own, `chat` takes those of the model's task.
TEMPERATURE = typer.Option(
    help="Above 1 more varied, below 1 safer; 0: always the most probable token."
)
TOP_K = typer.Option(help="Sample from the k most probable tokens only; 0: from all.")
TOP_P = typer.Option(
    help="Sample from the most probable tokens that together have this probability; 1: from all."
)
REPETITION_PENALTY = typer.Option(help="Above 1: tokens of the text so far become less probable.")
SAMPLING_SEED = typer.Option(help="Seed of the sampling: the same seed gives the same text.")

#: The parameters that say how data are to be read.
_ABOUT_DATA = ("columns", "encoding", "quoting", "max_chars")


def column_pairs(given: list[str] | None) -> dict[str, str]:
    """Parse the values of `--column`: our name of a column -> the data's name.

    Raises:
        PretuneError: a value does not have the form name=column.
    """
    pairs = {}
    for text in given or []:
        ours, equals, theirs = text.partition("=")
        if not equals or not ours or not theirs:
            raise PretuneError(f"--column '{text}': expected name=column", "For example text=body.")
        pairs[ours] = theirs
    return pairs


def option_pairs(given: list[str] | None) -> dict[str, Any]:
    """Parse the values of `--set`, which are YAML as in a recipe.

    Raises:
        PretuneError: a value does not have the form key=value.
    """
    if not given:
        return {}
    from pretune.recipe.recipe import parse_override

    return dict(parse_override(text) for text in given)


def only_with_data(context: typer.Context, data: str | None, called: str) -> None:
    """Refuse options that say how to read data where the command names no data.

    Args:
        context: of the command.
        data: the data that the command names, if any.
        called: the argument or option that names them.

    Raises:
        PretuneError: such an option is given without data.
    """
    for parameter in context.command.params if data is None else ():
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in _ABOUT_DATA and source is not None and source.name == "COMMANDLINE":
            raise PretuneError(
                f"{parameter.opts[0]} is about {called}, and there is none: the validation data "
                "are read as their run's recipe says",
                f"Leave it out, or name the data: {called}.",
            )
