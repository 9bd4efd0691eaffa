"""The application: which commands there are, how errors are shown, where output goes.

A command's module is imported when the command is run, so that `pretune --help` imports none of
them and no command waits for the others.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from pretune import __version__
from pretune.errors import PretuneError

if TYPE_CHECKING:
    from rich.console import Console

Function = TypeVar("Function", bound=Callable[..., None])

#: The exit code after a mistake that the user can correct.
USER_MISTAKE = 2
#: A program that a signal ended exits with this plus the signal's number: 130 for Ctrl-C.
STOPPED_BY = 128


class Listed(NamedTuple):
    """A command as `pretune --help` lists it.

    Attributes:
        group: the panel it stands in.
        module: the module in `pretune.cli` that defines it.
        summary: the first paragraph of its help.
    """

    group: str
    module: str
    summary: str


#: Every command, in the order of `pretune --help`. A test compares the summaries with the commands.
COMMANDS = {
    "describe": Listed(
        "Data",
        "describe",
        "Look at data: labels, lengths, duplicates, leaks between splits, what becomes [UNK].",
    ),
    "tokenizer": Listed(
        "Data",
        "tokenizer",
        "Train a tokenizer on raw text: WordPiece, byte-level BPE or characters.",
    ),
    "prepare": Listed(
        "Data",
        "prepare",
        "Clean and tokenize raw text into shards that pre-training reads.",
    ),
    "init": Listed(
        "Train",
        "recipes",
        "Write a recipe to start from: every key, what it means, and its default.",
    ),
    "recipes": Listed("Train", "recipes", "List the built-in recipes, or show one."),
    "plan": Listed(
        "Train",
        "plan",
        "Tell what a training takes before it starts: data, updates, FLOPs, memory, disk, hours.",
    ),
    "plot-schedule": Listed(
        "Train",
        "schedule",
        "Show the learning rate and the batch size over a run, before it is run.",
    ),
    "train": Listed("Train", "train", "Fine-tune a model as a recipe says."),
    "sweep": Listed(
        "Train",
        "sweep",
        "Search for good values of a recipe: many trainings, each with others.",
    ),
    "ladder": Listed(
        "Train",
        "ladder",
        "Train the classics on one text: n-grams, NNLM, RNN, LSTM, GRU, GPT, on the same budget.",
    ),
    "predict": Listed(
        "Use",
        "use",
        "Ask a trained model. Without TEXT and --file, lines are read from standard input.",
    ),
    "generate": Listed(
        "Use",
        "generate",
        "Let a language model go on from a prompt. Without --prompt and --file, from standard "
        "input.",
    ),
    "chat": Listed(
        "Use",
        "chat",
        "Talk to a model that was trained on dialogues. Through a pipe, each line is a message.",
    ),
    "prompt": Listed(
        "Use",
        "prompt",
        "Measure what a language model answers from examples in its prompt, untrained.",
    ),
    "embed": Listed(
        "Use",
        "embed",
        "Turn each text of a file into a vector, or find those nearest to a text.",
    ),
    "evaluate": Listed("Look inside", "use", "Measure a trained model on labelled data."),
    "compare": Listed(
        "Look inside",
        "compare",
        "Compare trained models on the same data: is one better, or was it luck?",
    ),
    "report": Listed(
        "Look inside",
        "report",
        "Write one page about a trained model: its training, its mistakes, every example.",
    ),
    "inspect": Listed(
        "Look inside",
        "inspect",
        "Show what a model is made of and what it costs; or look at its tokens or its attention.",
    ),
    "runs": Listed(
        "Look inside",
        "runs",
        "List all runs below a folder: what was trained, how far it came, and how good it is.",
    ),
    "convert": Listed(
        "Share",
        "convert",
        "Write a checkpoint as config.json, model.safetensors and tokenizer.json.",
    ),
    "push": Listed(
        "Share",
        "push",
        "Publish a trained model on the Hugging Face Hub, with a model card and its recipe.",
    ),
}


class _Commands(TyperGroup):
    """Commands that are imported when they are run, and whose errors are sentences."""

    def __init__(self, **settings: Any) -> None:
        # For the help page and for suggestions a name and a summary are enough.
        settings["commands"] = {
            name: TyperCommand(name, help=listed.summary, rich_help_panel=listed.group)
            for name, listed in COMMANDS.items()
        }
        super().__init__(**settings)

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, defined(name), rest

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PretuneError as error:
            text = _with_options(str(error), defined(ctx.invoked_subcommand))
            fail(f"error: {text}", USER_MISTAKE)
        except KeyboardInterrupt:
            fail("stopped; nothing more was saved", STOPPED_BY + signal.SIGINT)


def _with_options(text: str, shown: Any) -> str:
    """An error text that names a command's options instead of the recipe's keys."""
    for parameter in shown.params:
        name, option = re.escape(parameter.name or ""), parameter.opts[0]
        if not option.startswith("--"):
            continue
        # data.columns.text=COLUMN is --column text=COLUMN, or the option for that one column.
        text = re.sub(rf"\bdata\.{name}\.(?=[^\s=]+=)", f"{option} ", text)
        text = re.sub(rf"\bdata\.(?:columns\.)?{name}=", f"{option} ", text)
    return text


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


#: Where the commands' modules put their functions, from which typer builds the commands.
_functions = typer.Typer(rich_markup_mode="rich")


def command(name: str, *examples: str) -> Callable[[Function], Function]:
    """Make a function the command of that name, which must be in `COMMANDS`.

    Args:
        name: what the user types.
        examples: command lines that its help shows.
    """
    epilog = "\n\n".join(["Examples:", *examples])
    return _functions.command(name, epilog=epilog, rich_help_panel=COMMANDS[name].group)


def defined(name: str | None) -> Any:
    """Import one of `COMMANDS` and return it as typer builds it."""
    import_module(f"pretune.cli.{COMMANDS[name or ''].module}")
    return typer.main.get_group(_functions).commands[name or ""]


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


def to_stdout() -> Console:
    """The console for results. Texts come from data, names and paths, so none is read as markup."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def to_stderr(*, quiet: bool = False) -> Console:
    """The console for notes and errors, which are not read as markup either."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False, markup=False, quiet=quiet)


def fail(text: str, code: int) -> NoReturn:
    """End the command: print `text` on standard error and exit with `code`."""
    to_stderr().print(text, soft_wrap=True)
    raise typer.Exit(code)


@contextmanager
def progress_bar(what: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error, if that is a terminal.

    Args:
        what: the work, printed before the bar.
        shown: False for no bar at all.

    Yields:
        a function of the number done and the total; None where there is no bar.
    """
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.progress import Progress, TextColumn

    # The description may be a path: it is no markup.
    description = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = (description, *Progress.get_default_columns()[1:])
    with Progress(*columns, console=to_stderr(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Run the command line."""
    app(prog_name="pretune")
