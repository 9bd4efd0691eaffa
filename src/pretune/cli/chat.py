"""`pretune chat`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from pretune.cli import options
from pretune.cli.app import command, error_text, print_live, to_stderr
from pretune.errors import PretuneError, did_you_mean
from pretune.text.spoken_language import labelled, tr

if TYPE_CHECKING:
    from pretune.inference.chat import Conversation
    from pretune.text.console import PlainConsole

PROMPT = "> "
#: Bytes read of a line through a pipe; no message is longer.
LONGEST_LINE = 64 << 20
#: What `/set` changes.
SETTINGS: tuple[str, ...] = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
)
SETTINGS += ("repetition_penalty", "no_repeat_ngram", "seed")
HELP = """\
/reset             forget the conversation
/save FILE.jsonl   add the conversation to a file, as training reads it
/set NAME=VALUE    change how replies are written, e.g. /set temperature=0.7
/settings          show how replies are written
/quit              leave (or Ctrl-D)
Ctrl-C stops a reply. A message that begins with / is written with //."""
CHAT_COMMANDS = ("/help", "/reset", "/save", "/set", "/settings", "/quit")


@command(
    "chat",
    "pretune chat runs/chat-zh",
    "pretune chat runs/chat-zh --temperature 0.7 --top-k 20 --seed 1",
    "pretune chat runs/chat-zh --mmi runs/chat-zh-mmi --candidates 16",
    "pretune chat runs/chat-zh < messages.txt",
    "pretune chat smollm2   (SmolLM2-135M-Instruct, after make smollm2)",
)
def chat(
    context: typer.Context,
    run: options.Run,
    max_new_tokens: Annotated[
        int | None, Option(help="Maximum number of tokens of a reply. Default: as trained.")
    ] = None,
    temperature: Annotated[float | None, options.TEMPERATURE] = None,
    top_k: Annotated[int | None, options.TOP_K] = None,
    top_p: Annotated[float | None, options.TOP_P] = None,
    repetition_penalty: Annotated[float | None, options.REPETITION_PENALTY] = None,
    seed: Annotated[int | None, options.SAMPLING_SEED] = None,
    mmi: Annotated[
        str | None,
        Option(
            metavar="RUN",
            help="A model trained on dialogues backwards (recipe chat-zh-mmi), which picks the "
            "most fitting of several replies.",
        ),
    ] = None,
    candidates: Annotated[
        int, Option(min=1, max=10_000, help="How many replies --mmi picks from.")
    ] = 8,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Talk to a model that replies. Through a pipe, each line is a message.

    The model reads as much of the conversation as it has room for. /help lists what can be typed
    instead of a message.
    """
    from pretune.bundle.bundle import load
    from pretune.inference.chat import Conversation, Reranker, usual_decoding

    # The replies are written as the model's task has it, except for what is given here.
    bundle = load(run, allow_pickle=allow_pickle)
    # A second model, which predicts the message from the reply, may choose among replies.
    reranker = None
    if mmi is not None:
        reranker = Reranker(load(mmi, allow_pickle=allow_pickle), device=device)
    # Of the settings, those that were given on the command line.
    given = {name: value for name, value in context.params.items() if name in SETTINGS}
    chosen = {name: value for name, value in given.items() if value is not None}
    conversation = Conversation(
        bundle,
        replace(usual_decoding(bundle), **chosen),
        reranker=reranker,
        candidates=candidates,
        device=device,
        precision=precision,
    )
    # A person is told how to leave; a pipe just ends.
    notes = to_stderr()
    if sys.stdin.isatty():
        notes.say("/help shows the commands, Ctrl-D leaves.", style="dim")
    # An error ends the message that caused it, not the conversation.
    for message in _messages(notes):
        try:
            if message.startswith("/") and not message.startswith("//"):
                if not _command(message, conversation, notes):
                    return
            elif message.strip():
                _answer(message.removeprefix("/"), conversation, notes)
        except PretuneError as error:
            notes.say(labelled(tr("error"), error_text(error)))


def _messages(notes: PlainConsole) -> Iterator[str]:
    """Yield the lines that a person types, or those of a pipe."""
    if not sys.stdin.isatty():
        from pretune.inference.predict import decode_line

        lines = iter(partial(sys.stdin.buffer.readline, LONGEST_LINE), b"")
        for number, raw in enumerate(lines, start=1):
            yield decode_line(raw, number).rstrip("\r\n")
        return
    import readline  # noqa: F401 - gives `input` its keys and its history

    while True:
        try:
            line = input(PROMPT)
        except KeyboardInterrupt:
            notes.print("\n" + tr("Ctrl-D or /quit leaves."), style="dim")
            continue
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            notes.say(labelled(tr("error"), tr("that was not valid UTF-8")))
            continue
        yield line


def _answer(message: str, conversation: Conversation, notes: PlainConsole) -> None:
    """Print the reply while it is being written; Ctrl-C ends the reply alone."""
    shown = False
    try:
        # A message that is longer than the model's window loses its beginning.
        fitted = conversation.fit(message)
        if fitted.cut:
            left = "the beginning" if fitted.cut < 0 else f"{fitted.cut:,} tokens of it"
            note = f"(only the end of your message fits the model's window: {left} is left out)"
            notes.say(note, style="dim")
        with closing(conversation.say(message)) as pieces:
            for piece in pieces:
                # White space before the first word is left out.
                print_live(piece.text if shown else piece.text.lstrip())
                shown = shown or bool(piece.text.strip())
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        notes.say("(stopped)", style="dim")
        return
    if not shown:
        notes.say("(no reply; your message is dropped from the conversation)", style="dim")


def _command(line: str, conversation: Conversation, notes: PlainConsole) -> bool:
    """Execute a line that begins with a slash; return False to leave."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/reset":
        conversation.reset()
        notes.say("(forgotten)", style="dim")
    elif name == "/save":
        file = rest or "chat.jsonl"
        append_conversation(conversation.record if conversation.turns else None, Path(file))
        notes.say(f"(saved in {file})", style="dim")
    elif name == "/set":
        _set(rest, conversation)
    elif name == "/settings":
        for setting, value in asdict(conversation.decoding).items():
            if setting in SETTINGS:
                notes.print(f"{setting}={value}")
    elif name == "/help":
        notes.print(tr(HELP))
    else:
        raise PretuneError(f"no command is called '{name}'", did_you_mean(name, CHAT_COMMANDS))
    return True


def _set(text: str, conversation: Conversation) -> None:
    from pretune.recipe.recipe import parse_override

    name, value = parse_override(text)
    if name not in SETTINGS:
        raise PretuneError(f"no setting is called '{name}'", did_you_mean(name, SETTINGS))
    conversation.decoding = replace(conversation.decoding, **{name: value})


def append_conversation(record: Mapping[str, Any] | None, path: Path) -> None:
    """Append a conversation, as training reads it, to a `.jsonl` file of conversations.

    Raises:
        PretuneError: the conversation is empty, the file is of another kind or cannot be written.
    """
    if record is None:
        raise PretuneError("the conversation is empty: there is nothing to save")
    if path.suffix != ".jsonl":
        raise PretuneError(
            f"{path}: conversations are saved as JSON lines", "Name it with .jsonl at the end."
        )
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    try:
        with path.open("ab+") as file:
            # A line that somebody left without its end is ended first.
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
    except OSError as error:
        raise PretuneError(f"{path}: cannot be written ({error.strerror})") from None
    except ValueError as error:  # a NUL, or half a character
        raise PretuneError(f"{str(path)!r} is not a valid file name ({error})") from None
