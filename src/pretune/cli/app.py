"""What the commands share: the application, errors as sentences, options of several commands."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from pretune import __version__
from pretune.errors import PretuneError

USER_MISTAKE = 2
#: Exit codes of a program that a signal ended, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.
STOPPED_BY = 128


class _Commands(TyperGroup):
    """Our errors as a sentence and an exit code, never as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except PretuneError as error:
            fail(f"error: {self._said(str(error), ctx)}", USER_MISTAKE)
        except KeyboardInterrupt:
            fail("stopped; nothing more was saved", STOPPED_BY + signal.SIGINT)

    def _said(self, text: str, ctx: Any) -> str:
        """With the command's own options in place of the keys of recipes that they stand for."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        for parameter in [] if command is None else command.params:
            name, option = re.escape(parameter.name or ""), parameter.opts[0]
            if not option.startswith("--"):
                continue
            # data.columns.text=COLUMN is --column text=COLUMN, or the option for that one column.
            text = re.sub(rf"\bdata\.{name}\.(?=[^\s=]+=)", f"{option} ", text)
            text = re.sub(rf"\bdata\.(?:columns\.)?{name}=", f"{option} ", text)
        return text


def to_stdout() -> Console:
    """Where answers go. What is printed comes from data, names and paths: it is never markup."""
    return Console(highlight=False, emoji=False, markup=False)


def to_stderr(*, quiet: bool = False) -> Console:
    """Where notes and errors go, as they are."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False, quiet=quiet)


def fail(text: str, code: int) -> NoReturn:
    """End the command: say why on standard error, exit with `code`."""
    to_stderr().print(text, soft_wrap=True)
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
MaxChars = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="A longer text is taken for a mistake. Default: 100,000 characters, or 100 million "
        "where a text is read in several windows.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read pytorch_model.bin too, by torch's restricted unpickler. Only from people you "
        "trust.",
    ),
]
Model = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, a model folder or a Hub id.")
]


TaskOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Another value of an option of the task: --set beams=1."
    ),
]


def column_pairs(given: list[str] | None) -> dict[str, str]:
    """The values of `--column` as our names -> the data's.

    Raises:
        PretuneError: one is not of the form name=column.
    """
    pairs = {}
    for text in given or []:
        ours, equals, theirs = text.partition("=")
        if not equals or not ours or not theirs:
            raise PretuneError(f"--column '{text}': expected name=column", "For example text=body.")
        pairs[ours] = theirs
    return pairs


def only_with_data(context: typer.Context, data: str | None, called: str) -> None:
    """Options that say how to read data are for data that the command names.

    Args:
        context: of the command.
        data: what it names.
        called: the argument or option that it does so by.

    Raises:
        PretuneError: there are such options, and no data.
    """
    for parameter in context.command.params if data is None else ():
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in _ABOUT_DATA and source is not None and source.name == "COMMANDLINE":
            raise PretuneError(
                f"{parameter.opts[0]} is about {called}, and there is none: the validation data "
                "are read as their run's recipe says",
                f"Leave it out, or name the data: {called}.",
            )


#: The options that say how data are to be read.
_ABOUT_DATA = ("columns", "encoding", "quoting", "max_chars")


def option_pairs(given: list[str] | None) -> dict[str, Any]:
    """The values of `--set`, which are YAML as in a recipe.

    Raises:
        PretuneError: one is not of the form key=value.
    """
    from pretune.recipe.recipe import parse_override

    return dict(parse_override(text) for text in given or [])


@contextmanager
def progress_bar(what: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error, if it is a terminal: call it with the number done and of all."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.progress import Progress, TextColumn

    # What is told may be a path, and no markup.
    told = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = (told, *Progress.get_default_columns()[1:])
    with Progress(*columns, console=to_stderr(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Run the command line."""
    app(prog_name="pretune")
