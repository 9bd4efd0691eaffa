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
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, TypeVar

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from pretune.cli.short_forms import TOLD, RecipeCommand
from pretune.errors import Note, PretuneError
from pretune.text.spoken_language import (
    ENGLISH,
    LANGUAGES,
    VARIABLE,
    labelled,
    language,
    language_of,
    tr,
)
from pretune.text.terminal import OutputLost, for_terminal, hanging, json_text, lasting_streams
from pretune.version import __version__

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

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
        "tokenizer": (
            "Train a tokenizer on raw text: WordPiece, byte-level BPE, Unigram or characters."
        ),
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
        "chat": ("Talk to a model that replies. Through a pipe, each line is a message."),
        "rank": (
            "Order unlabelled texts by what their labels would teach the model (active learning)."
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
            name: TyperCommand(name, help=tr(listed.summary), rich_help_panel=tr(listed.group))
            for name, listed in COMMANDS.items()
        }
        super().__init__(**settings)
        _translate(self)

    @override
    def main(self, *args: Any, **settings: Any) -> Any:
        with _translated_titles():
            return super().main(*args, **settings)

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, plugins_first(args))
        except typer.TyperException as error:
            _translate_mistake(error)
            raise

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, defined(name), rest

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            with _printed_notes():
                _note_unknown_language()
                return super().invoke(ctx)
        except PretuneError as error:
            if error.told:
                raise typer.Exit(USER_MISTAKE) from None
            text = _with_options(error_text(error), defined(ctx.invoked_subcommand))
            fail(labelled(tr("error"), hanging(text)), USER_MISTAKE)
        except OSError as error:
            # Of a name that no file can have; what else fails in a system call is told in place.
            if error.errno != errno.ENAMETOOLONG:
                raise
            name = str(error.filename)[:80]
            wrong = tr(f"{name}...: too long for the name of a file")
            fail(labelled(tr("error"), wrong), USER_MISTAKE)
        except typer.TyperException as error:  # it repeats what was typed
            error.message = for_terminal(error.message)
            _translate_mistake(error)
            raise
        except MemoryError:
            # What was being made is gone by now, so there is room for a sentence.
            wrong = tr("the memory is full")
            way_out = tr(
                "Close other programs, or give less at a time: fewer or shorter texts, or a "
                "smaller batch."
            )
            fail(labelled(tr("error"), f"{wrong}\n  {way_out}"), 1)
        except KeyboardInterrupt as interrupt:
            # Ctrl-C, unless a training was told otherwise: it gives the number of its signal.
            number = next((n for n in interrupt.args if isinstance(n, int)), signal.SIGINT)
            fail("stopped; nothing more was saved", STOPPED_BY + number)


def error_text(error: PretuneError) -> str:
    """What is wrong and the way out, in the language that is spoken."""
    parts = (error.message, error.hint)
    return "\n  ".join(tr(part) for part in parts if part)


def _translate(command: Any) -> None:
    """Translate the help page of a command, if another language than English is spoken."""
    if language() != ENGLISH:
        from pretune.cli.help_language import translate_command

        translate_command(command)


def _translate_mistake(error: typer.TyperException) -> None:
    if language() != ENGLISH:
        from pretune.cli.help_language import translate_mistake

        translate_mistake(error)


def _translated_titles() -> AbstractContextManager[None]:
    if language() == ENGLISH:
        return nullcontext()
    from pretune.cli.help_language import translated_titles

    return translated_titles()


def _note_unknown_language() -> None:
    asked = os.environ.get(VARIABLE)
    if asked and language_of(os.environ) is None:
        known = " and ".join(LANGUAGES)
        wrong = tr(f"{VARIABLE}={asked}: no such language; there are {known}")
        to_stderr().say(labelled(tr("note"), wrong))


def plugins_first(args: Sequence[str]) -> list[str]:
    """Return the arguments with each `--plugin FILE` before the command, wherever it was typed."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":  # what follows is no option
            rest += [word, *words]
        elif word == "--plugin":
            first += [word, *([] if (file := next(words, None)) is None else [file])]
        elif word.startswith("--plugin="):
            first.append(word)
        else:
            rest.append(word)
    return [*first, *rest]


@contextmanager
def _printed_notes() -> Iterator[None]:
    """Context that prints notes on standard error as sentences, and other warnings as usual."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, Note):
                to_stderr().say(labelled(tr("note"), tr(str(message))))
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("default", Note)
        yield


def _with_options(text: str, shown: Any) -> str:
    """An error text that names a command's options instead of the recipe's keys."""
    # Chinese characters are letters, too: without ASCII, none of them would end a word.
    for parameter in shown.params:
        name, option = re.escape(parameter.name or ""), parameter.opts[0]
        if not option.startswith("--"):
            continue
        # data.columns.text=COLUMN is --column text=COLUMN, or the option for that one column.
        text = re.sub(rf"(?a:\b)data\.{name}\.(?=[^\s=]+=)", f"{option} ", text)
        text = re.sub(rf"(?a:\b)data\.(?:columns\.)?{name}=", f"{option} ", text)
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


def command(name: str, *examples: str, recipe: bool = False) -> Callable[[Function], Function]:
    """Make a function the command of that name in `COMMANDS`.

    Args:
        name: of the command.
        examples: for its help page.
        recipe: whether it takes a recipe and overrides, and with them the short forms of some.
    """
    epilog = "\n\n".join(["Examples:", *examples, *([TOLD] if recipe else [])])
    kind = RecipeCommand if recipe else TyperCommand
    group = COMMANDS[name].group
    return _functions.command(name, cls=kind, epilog=epilog, rich_help_panel=group)


def defined(name: str | None) -> Any:
    """Import one of `COMMANDS` and return it as typer builds it."""
    import_module(f"pretune.cli.{COMMANDS[name or ''].module}")
    command = typer.main.get_group(_functions).commands[name or ""]
    _translate(command)
    return command


def _version(show: bool) -> None:
    if show:
        print(f"pretune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    plugins: Annotated[
        list[Path] | None,
        Option(
            "--plugin",
            metavar="FILE.py",
            help="Run a file of your own first, which registers tasks, metrics, losses, callbacks "
            "or recipes; may be repeated.",
        ),
    ] = None,
) -> None:
    if plugins:
        from pretune.plugins import load_plugin

        for plugin in plugins:
            load_plugin(plugin)


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
            # What is longer than a line all the same is to be copied: the terminal wraps it.
            shown = tr(view) if isinstance(view, str) else view
            out.print(shown, soft_wrap=isinstance(view, str | Text), crop=False)
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
    to_stderr().print(tr(text), soft_wrap=True)
    raise typer.Exit(code)


def print_live(text: str) -> None:
    """Print a text, or a part of one, at once and without a line end of its own."""
    print(for_terminal(text), end="", flush=True)


class ProgressBar:
    """A bar on standard error, moved by `(done, total)`, or `(done)` where the total is known."""

    def __init__(self, bar: Progress, task: TaskID, total: int | None) -> None:
        self._bar, self._task, self._total = bar, task, total

    def __call__(self, done: float, total: int | None = None) -> None:
        """Move the bar."""
        whole = self._total if total is None else total
        self._bar.update(self._task, completed=done, total=whole)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Context without the bar, in which something may be printed."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def progress_bar(
    what: str, total: int | None = None, *, shown: bool = True
) -> Iterator[ProgressBar | None]:
    """Show a progress bar on standard error, after the name of the work.

    Yields:
        the bar; None where standard error is no terminal.
    """
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.progress import Progress, TextColumn

    # The description may be a path: it is no markup.
    description = TextColumn("{task.description}", style="progress.description", markup=False)
    columns = (description, *Progress.get_default_columns()[1:])
    with Progress(*columns, console=to_stderr(), transient=True) as bar:
        task = bar.add_task(tr(what), total=total)
        yield ProgressBar(bar, task, total)


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
        to_stderr().say(labelled(tr("error"), tr(str(lost))))
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
