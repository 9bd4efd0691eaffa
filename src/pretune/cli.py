"""The command line: parse, call, print. `pretune --help` starts without importing torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from pretune import __version__
from pretune.errors import PretuneError

if TYPE_CHECKING:
    from pretune.data import Records
    from pretune.infer import Predictor
    from pretune.tasks import Prediction

USER_MISTAKE = 2
INTERRUPTED = 130
#: Rows of a file predicted before anything is printed.
CHUNK = 4096


class _Commands(TyperGroup):
    """Our errors as a sentence and an exit code, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except PretuneError as error:
            _fail(f"error: {error}", USER_MISTAKE)
        except KeyboardInterrupt:
            _fail("stopped; nothing more was saved", INTERRUPTED)


def _fail(text: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From raw text to a served language model.",
    epilog="Start with: [bold]pretune train train.tsv[/] (a file with the columns text and label), "
    "then [bold]pretune predict runs/train 'some text'[/]",
)


def _version(show: bool) -> None:
    if show:
        print(f"pretune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="What the data calls a column, e.g. --column text=body."),
]
Encoding = Annotated[str, typer.Option(help="Of text files, e.g. gb18030.")]
Quoting = Annotated[
    str, typer.Option(help="Of CSV and TSV: auto, standard (fields in double quotes) or none.")
]
Model = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, a model folder or a Hub id.")
]


@app.command(
    epilog="Examples:\n\n"
    "pretune train tickets.tsv\n\n"
    "pretune train mrpc model.from=minilm train.epochs=2\n\n"
    "pretune train my-recipe.yaml output=runs/second --seeds 3"
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_FILE",
            help="A built-in recipe (see `pretune recipes`), a YAML file, or a labelled data file.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values of the recipe to change."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train under N seeds and show mean ± sd.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier run in the output folder.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model as a recipe says.

    Everything goes into the recipe's output folder: the best and the last model, the logs, and the
    recipe itself with every default written out.
    """
    from pretune.recipe import Recipe
    from pretune.report import run_table, seeds_table
    from pretune.training import Interrupted, train_recipe, train_seeds

    chosen = Recipe.load(recipe, overrides or [])
    out = Console()
    try:
        if seeds > 1:
            several = train_seeds(chosen, seeds, overwrite=overwrite, quiet=quiet)
            out.print_json(data=several.to_dict()) if as_json else out.print(seeds_table(several))
            return
        result = train_recipe(chosen, overwrite=overwrite, quiet=quiet)
    except Interrupted as stopped:
        _fail(
            f"{stopped}\nuse it:      pretune predict {stopped.folder}/last TEXT\n"
            f"train again: add --overwrite, or choose another output=FOLDER",
            INTERRUPTED,
        )
    if as_json:
        out.print_json(data=result.to_dict())
        return
    out.print(run_table(result))
    out.print(f"ask it:      pretune predict {result.folder} TEXT", highlight=False, markup=False)
    out.print(f"evaluate it: pretune evaluate {result.folder} DATA", highlight=False, markup=False)


@app.command(epilog="Example: pretune evaluate runs/tickets test.tsv")
def evaluate(
    run: Model,
    data: Annotated[str, typer.Argument(help="A labelled file, or a Hub dataset.")],
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    quoting: Quoting = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a trained model on labelled data."""
    from pretune import api
    from pretune.report import confusion_table, evaluation_table

    found = api.evaluate(
        run,
        data,
        columns=_pairs(columns),
        device=device,
        encoding=encoding,
        quoting=quoting,
    )
    out = Console()
    if as_json:
        out.print_json(data=found.to_dict())
        return
    out.print(evaluation_table(found))
    confusion = confusion_table(found.details)
    if confusion is not None:
        out.print(confusion)


@app.command(
    epilog="Examples:\n\n"
    "pretune predict runs/tickets 'Where is my parcel?' 'I want my money back'\n\n"
    "pretune predict runs/tickets --file inbox.csv --column text=body --json > answers.jsonl\n\n"
    "tail -f messages.txt | pretune predict runs/tickets --json"
)
def predict(
    run: Model,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="The texts; for pairs: first, second, first, ..."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="A table with the task's columns, or plain text with one input a line."),
    ] = None,
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    quoting: Quoting = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask a trained model. Without TEXT and --file, lines are read from standard input.

    Answers come in the order of the input. For models of pairs, the two texts of a line are
    separated by a tab.
    """
    from pretune.infer import Predictor, read_inputs
    from pretune.tasks.bundle import load

    if texts and file:
        raise PretuneError("give either TEXT or --file, not both")
    if not texts and file is None and sys.stdin.isatty():
        raise PretuneError("nothing to predict: give TEXT, --file FILE, or lines through a pipe")
    predictor = Predictor(load(run), device=device)
    if texts:
        batches: Iterable[Records] = [_texts_as_records(predictor, texts)]
    elif file is not None:
        records = read_inputs(
            predictor.bundle, file, columns=_pairs(columns), encoding=encoding, quoting=quoting
        )
        starts = range(0, len(records), CHUNK)
        batches = (records.take(range(i, min(i + CHUNK, len(records)))) for i in starts)
    else:
        batches = _piped(predictor)
    show = _print_json if as_json else _print_answer
    for batch in batches:
        for row, answer in zip(batch.rows, predictor.predict(batch), strict=True):
            show({name: row[name] for name in predictor.task.inputs}, answer)
        sys.stdout.flush()


def _texts_as_records(predictor: Predictor, texts: list[str]) -> Records:
    width = len(predictor.task.inputs)
    if len(texts) % width:
        raise PretuneError(
            f"the model reads {width} texts at a time ({', '.join(predictor.task.inputs)}), "
            f"but there are {len(texts)}",
            "Put each text in quotes.",
        )
    return predictor.records([texts[i : i + width] for i in range(0, len(texts), width)], "TEXT")


def _piped(predictor: Predictor) -> Iterator[Records]:
    from pretune.infer import stream_lines
    from pretune.infer.predict import lines_to_records

    for lines in stream_lines(sys.stdin.fileno()):
        records = lines_to_records(predictor.task, lines, "input")
        if len(records):
            yield records


def _print_json(inputs: dict[str, Any], answer: Prediction) -> None:
    print(json.dumps({**inputs, **answer.to_dict()}, ensure_ascii=False))


def _print_answer(inputs: dict[str, Any], answer: Prediction) -> None:
    from pretune.report import answer_text

    Console(highlight=False).print(answer_text(inputs, answer), soft_wrap=True)


@app.command(epilog="Example: pretune init classify > my-recipe.yaml")
def init(
    task: Annotated[str, typer.Argument(help="The task, e.g. classify.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of to the terminal.")
    ] = None,
) -> None:
    """Write a recipe to start from: every key, what it means, and its default."""
    from pretune.errors import RecipeError
    from pretune.hub import atomic_text
    from pretune.recipe_text import commented_recipe

    text = commented_recipe(task)
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise RecipeError(f"{output}: exists already", "Choose another name, or remove it first.")
    try:
        atomic_text(output, text)
    except OSError as error:
        raise RecipeError(f"{output}: cannot be written ({error.strerror})") from None
    print(f"wrote {output}; run it with: pretune train {output}")


@app.command(epilog="Example: pretune recipes mrpc")
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one.")] = None,
) -> None:
    """List the built-in recipes, or show one."""
    from rich.table import Table

    from pretune.errors import RecipeError, did_you_mean
    from pretune.recipe import Recipe, builtin_recipes

    known = builtin_recipes()
    if name is not None:
        if name not in known:
            raise RecipeError(f"no built-in recipe is called '{name}'", did_you_mean(name, known))
        print(known[name], end="")
        return
    table = Table("recipe", "what it does", pad_edge=False)
    for key in known:
        table.add_row(key, Recipe.load(key).description)
    Console(highlight=False).print(table)


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        ours, equals, theirs = text.partition("=")
        if not equals or not ours or not theirs:
            raise PretuneError(f"--column '{text}': expected name=column", "For example text=body.")
        pairs[ours] = theirs
    return pairs


def main() -> None:
    """Run the command line."""
    app(prog_name="pretune")


if __name__ == "__main__":
    main()
