"""The application: which commands there are, how errors are shown, where output goes.

A command's module is imported when the command is run, so that `pretune --help` imports none of
them and no command waits for the others.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, TypeVar

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from pretune.errors import Note, PretuneError
from pretune.text.terminal import OutputLost, for_terminal, hanging, json_text, lasting_streams
from pretune.version import __version__

if TYPE_CHECKING:
    from pretune.data.records import Records
    from pretune.text.console import PlainConsole

Function = TypeVar("Function", bound=Callable[..., None])

#: The exit code after a mistake that the user can correct.
USER_MISTAKE = 2
#: A program that a signal ended exits with this plus the signal's number: 130 for Ctrl-C.
STOPPED_BY = 128
#: How often a waiting thread looks before it sleeps: a fraction of a millisecond, longer than
#: Python takes from a parallel region to the next.
SPINS = 10_000


class Listed(NamedTuple):
    """A command as `pretune --help` lists it: its panel, its module here, its first paragraph."""

    group: str
    module: str
    summary: str


#: The summary of every command, by its panel in `pretune --help` and in that order. A test
#: compares the summaries with the commands.
_SUMMARIES = {
    "Data": {
        "describe": (
            "Look at data: labels, lengths, duplicates, leaks between splits, unknown tokens."
        ),
        "tokenizer": "Train a tokenizer on raw text: WordPiece, byte-level BPE or characters.",
        "prepare": "Clean and tokenize raw text into shards that pre-training reads.",
    },
    "Train": {
        "init": "Write a recipe to start from, with every key, its meaning and its default.",
        "recipes": "List the recipes that have a name, built-in or installed, or print one.",
        "plan": "Estimate what a training run takes: data, updates, FLOPs, memory, disk, hours.",
        "plot-schedule": "Plot the learning rate and the batch size of a run before it starts.",
        "train": "Train or fine-tune a model as a recipe says.",
        "sweep": "Search for good values of a recipe in many training runs.",
        "ladder": (
            "Train n-gram, NNLM, RNN, LSTM, GRU and GPT models on one text with the same budget."
        ),
    },
    "Use": {
        "predict": (
            "Ask a trained model. Without TEXT and --file, it reads lines from standard input."
        ),
        "generate": (
            "Let a language model continue a prompt. Without --prompt and --file, it reads "
            "standard input."
        ),
        "chat": (
            "Talk to a model that was trained on dialogues. Through a pipe, each line is a message."
        ),
        "prompt": "Measure how well a language model answers from examples in its prompt alone.",
        "embed": "Turn each text of a file into a vector, or find the texts nearest to a query.",
        "serve": "Serve models over HTTP, with a page to try them.",
    },
    "Look inside": {
        "evaluate": "Measure a trained model on labelled data.",
        "compare": "Compare trained models on the same data: is one better, or was it luck?",
        "report": (
            "Write one page about a trained model: its training, its mistakes, every example."
        ),
        "inspect": "Show a model's parts and costs, a text's tokens, an attention map, or kernels.",
        "runs": "List the runs below a folder: what was trained, how far, and how good it is.",
    },
    "Make smaller": {
        "prune": "Make a smaller model: fewer layers, attention heads, neurons or tokens.",
        "quantize": "Round a model to 8 bits, as far as its answers stay the same.",
    },
    "Share": {
        "convert": "Convert a checkpoint to config.json, model.safetensors and tokenizer.json.",
        "export": "Write a model for other engines: ONNX, GGUF or CTranslate2.",
        "push": (
            "Publish a trained model on the Hugging Face Hub, with a model card and its recipe."
        ),
    },
}
#: The commands whose module has another name.
_MODULES = dict.fromkeys(("init", "plan", "plot-schedule"), "recipes")
_MODULES |= dict.fromkeys(("sweep", "ladder", "runs"), "experiments")
_MODULES |= dict.fromkeys(("evaluate", "compare"), "measure")
COMMANDS = {
    name: Listed(group, _MODULES.get(name, name), summary)
    for group, commands in _SUMMARIES.items()
    for name, summary in commands.items()
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
            with _printed_notes():
                return super().invoke(ctx)
        except PretuneError as error:
            text = hanging(_with_options(str(error), defined(ctx.invoked_subcommand)))
            fail(f"error: {text}", USER_MISTAKE)
        except OSError as error:
            # Of a name that no file can have; what else fails in a system call is told in place.
            if error.errno != errno.ENAMETOOLONG:
                raise
            name = str(error.filename)[:80]
            fail(f"error: {name}...: too long for the name of a file", USER_MISTAKE)
        except typer.TyperException as error:  # it repeats what was typed
            error.message = for_terminal(error.message)
            raise
        except MemoryError:
            # What was being made is gone by now, so there is room for a sentence.
            fail(
                "error: the memory is full\n  Close other programs, or give less at a time: fewer "
                "or shorter texts, or a smaller batch.",
                1,
            )
        except KeyboardInterrupt as interrupt:
            # Ctrl-C, unless a training was told otherwise: it gives the number of its signal.
            number = next((n for n in interrupt.args if isinstance(n, int)), signal.SIGINT)
            fail("stopped; nothing more was saved", STOPPED_BY + number)


@contextmanager
def _printed_notes() -> Iterator[None]:
    """Context that prints notes on standard error as sentences, and other warnings as usual."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, Note):
                to_stderr().say(f"note: {message}")
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("default", Note)
        yield


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
    """Make a function the command of that name in `COMMANDS`, with examples for its help."""
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
        bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def to_stdout() -> PlainConsole:
    """The console for results."""
    from pretune.text.console import PlainConsole

    return PlainConsole()


def to_stderr(*, quiet: bool = False) -> PlainConsole:
    """The console for notes and errors."""
    from pretune.text.console import PlainConsole

    return PlainConsole(stderr=True, quiet=quiet)


def print_notes(records: Records) -> None:
    """Tell people on standard error how records were read."""
    for note in records.notes:
        to_stderr().say(note)


def print_result(result: dict[str, Any], *views: Any, as_json: bool, saved: bool = False) -> None:
    """Print a result: as JSON, or as views, of which the terminal itself wraps lines of text.

    Args:
        result: it, JSON-ready.
        views: what is shown of it to people.
        as_json: which of the two to print.
        saved: whether files have all of it, so that nobody needs to read what is printed.
    """
    from rich.text import Text

    out = to_stdout()
    try:
        if as_json:
            from rich.highlighter import JSONHighlighter

            text = json_text(result, indent=2, ascii_only=_ascii_only())
            out.print(JSONHighlighter()(text), soft_wrap=True)
            return
        for view in views:
            out.print(view, soft_wrap=isinstance(view, str | Text))
    except OutputLost as lost:
        if not (saved and lost.unread):
            raise


def print_json_line(value: Any) -> None:
    """Print a value as JSON on one line, at once."""
    print(json_text(value, ascii_only=_ascii_only()), flush=True)


def _ascii_only() -> bool:
    """Whether standard output may lack characters, which JSON can write as escapes."""
    return not (sys.stdout.encoding or "utf-8").lower().startswith("utf")


def fail(text: str, code: int) -> NoReturn:
    """End the command: print `text` on standard error and exit with `code`."""
    to_stderr().print(text, soft_wrap=True)
    raise typer.Exit(code)


def print_live(text: str) -> None:
    """Print a text, or a part of one, at once and without a line end of its own."""
    print(for_terminal(text), end="", flush=True)


@contextmanager
def progress_bar(
    what: str, total: int | None = None, *, shown: bool = True
) -> Iterator[Callable[..., None] | None]:
    """Show a progress bar on standard error, if that is a terminal, after the name of the work.

    Yields:
        a function `(done, total)`, or `(done)` where the total is known; None if there is no bar.
    """
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.progress import Progress, TextColumn

    # The description may be a path: it is no markup.
    description = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = (description, *Progress.get_default_columns()[1:])
    with Progress(*columns, console=to_stderr(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total=total: bar.update(task, completed=done, total=total)


def main() -> None:
    """Run the command line, whatever becomes of its standard streams."""
    _read_as_utf8()
    wait_briefly(os.environ)
    try:
        with lasting_streams():
            app(prog_name="pretune")
    except OutputLost as lost:
        # A reader such as `head` that has seen enough is no mistake; git and cat end in this way.
        if lost.closed_pipe:
            sys.exit(STOPPED_BY + signal.SIGPIPE)
        to_stderr().say(f"error: {lost}")
        sys.exit(1)


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let threads that wait for each other give their core away soon, unless a person says how.

    At the end of a parallel region torch's OpenMP (libgomp) tries 300,000 times, several
    milliseconds long, before a thread sleeps. Where another process is busy, the thread that all
    wait for may be without a core just because the others wait on one. libgomp reads this when it
    is loaded, so it has to be set before torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & {*environment}:
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def _read_as_utf8() -> None:
    """Start again in Python's UTF-8 mode if file names and arguments would be read as ASCII.

    So they are in the C locale with PYTHONUTF8=0; without that, Python itself takes UTF-8 there.
    """
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") == "0":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606
