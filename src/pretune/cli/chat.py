"""`pretune chat`: talk to a model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pretune.cli.app import command, to_stderr
from pretune.cli.generate import put
from pretune.cli.options import DeviceOption, PickleOption, RunArgument
from pretune.errors import PretuneError, did_you_mean

if TYPE_CHECKING:
    from pretune.inference.chat import Conversation

PROMPT = "> "
#: Bytes of a line through a pipe that are read; no message is that long.
MOST_BYTES = 64 << 20
#: What `/set` changes.
SETTINGS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram",
    "seed",
)
HELP = """\
/reset             forget what was said
/save FILE.jsonl   add the conversation to a file, as training reads it
/set NAME=VALUE    change how replies are written, e.g. /set temperature=0.7
/settings          show how they are
/quit              leave (or Ctrl-D)
Ctrl-C stops a reply. A message that begins with / is written with //."""
COMMANDS = ("/help", "/reset", "/save", "/set", "/settings", "/quit")


@command(
    "chat",
    "pretune chat runs/chat-zh",
    "pretune chat runs/chat-zh --temperature 0.7 --top-k 20 --seed 1",
    "pretune chat runs/chat-zh --mmi runs/chat-zh-mmi --candidates 16",
    "pretune chat runs/chat-zh < messages.txt",
)
def chat(
    run: RunArgument,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The most tokens of a reply. Default: the model's task's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Above 1 bolder, below 1 safer; 0: the likeliest token.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens; 0: all.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Only the likeliest tokens that have this share together; 1: all."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: what was said becomes less likely.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of what is drawn: the same seed, the same replies.")
    ] = None,
    mmi: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="A model trained on dialogues backwards (recipe chat-zh-mmi): of several replies "
            "it chooses the one that fits what was said best.",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many replies --mmi has.")
    ] = 8,
    device: DeviceOption = "auto",
    allow_pickle: PickleOption = False,
) -> None:
    """Talk to a model that was trained on dialogues. Through a pipe, each line is a message.

    The model reads as much of the conversation as it has room for. /help shows what else there is.
    """
    from pretune.bundle.bundle import load
    from pretune.inference.chat import Conversation, Reranker, usual_decoding

    bundle = load(run, allow_pickle=allow_pickle)
    reranker = None
    if mmi is not None:
        reranker = Reranker(load(mmi, allow_pickle=allow_pickle), device=device)
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    talk = Conversation(
        bundle,
        replace(usual_decoding(bundle), **chosen),  # type: ignore[arg-type]
        reranker=reranker,
        candidates=candidates,
        device=device,
    )
    notes = to_stderr()
    if sys.stdin.isatty():
        notes.print("/help shows the commands, Ctrl-D leaves.", style="dim")
    for message in _messages(notes):
        try:
            if message.startswith("/") and not message.startswith("//"):
                if not _command(message, talk, notes):
                    return
            elif message.strip():
                _answer(message.removeprefix("/"), talk, notes)
        except PretuneError as error:
            notes.print(f"error: {error}", soft_wrap=True)


def _messages(notes: Console) -> Iterator[str]:
    """What a person types, or the lines of a pipe."""
    if not sys.stdin.isatty():
        yield from _piped()
        return
    import readline  # noqa: F401 - gives `input` its keys and its history

    while True:
        try:
            line = input(PROMPT)
        except KeyboardInterrupt:
            notes.print("\nCtrl-D or /quit leaves.", style="dim")
            continue
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            notes.print("error: that was not valid UTF-8")
            continue
        yield line


def _piped() -> Iterator[str]:
    from pretune.inference.predict import decode_line

    number = 0
    while raw := sys.stdin.buffer.readline(MOST_BYTES):
        number += 1
        yield decode_line(raw, number).rstrip("\r\n")


def _answer(message: str, talk: Conversation, notes: Console) -> None:
    """Show the reply as it comes; Ctrl-C ends it, and the conversation goes on."""
    shown = False
    try:
        fitted = talk.fit(message)
        if fitted.cut:
            left = "the beginning" if fitted.cut < 0 else f"{fitted.cut:,} tokens"
            note = f"(only the end of your message fits the model's window: {left} of it left out)"
            notes.print(note, style="dim", soft_wrap=True)
        with closing(talk.say(message)) as pieces:
            for piece in pieces:
                # Nothing before the first word, and no line ends after the last.
                put(piece.text if shown else piece.text.lstrip())
                shown = shown or bool(piece.text.strip())
        print(flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        notes.print("(stopped)", style="dim")
        return
    if not shown:
        notes.print("(no reply: as if you had said nothing)", style="dim")


def _command(line: str, talk: Conversation, notes: Console) -> bool:
    """Do what a line with a slash says; False: leave."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return False
    if name == "/reset":
        talk.reset()
        notes.print("(forgotten)", style="dim")
    elif name == "/save":
        save(talk.record if talk.turns else None, Path(rest or "chat.jsonl"))
        notes.print(f"(saved in {rest or 'chat.jsonl'})", style="dim")
    elif name == "/set":
        _set(rest, talk)
    elif name == "/settings":
        for setting, value in asdict(talk.decoding).items():
            if setting in SETTINGS:
                notes.print(f"{setting}={value}")
    elif name == "/help":
        notes.print(HELP)
    else:
        raise PretuneError(f"no command is called '{name}'", did_you_mean(name, COMMANDS))
    return True


def _set(text: str, talk: Conversation) -> None:
    from pretune.recipe.recipe import parse_override

    name, value = parse_override(text)
    if name not in SETTINGS:
        raise PretuneError(f"no setting is called '{name}'", did_you_mean(name, SETTINGS))
    talk.decoding = replace(talk.decoding, **{name: value})


def save(record: Mapping[str, Any] | None, path: Path) -> None:
    """Add a conversation to a file of them, one a line.

    Args:
        record: the conversation, as training reads it; None: nothing was said.
        path: the file; one whose last line has no end gets it.

    Raises:
        PretuneError: there is nothing to save, another kind of file, or it cannot be written.
    """
    if record is None:
        raise PretuneError("nothing was said yet, so there is nothing to save")
    if path.suffix != ".jsonl":
        raise PretuneError(
            f"{path}: conversations are saved as JSON lines", "Name it with .jsonl at the end."
        )
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
    except OSError as error:
        raise PretuneError(f"{path}: cannot be written ({error.strerror})") from None
    except ValueError as error:  # a NUL, or half a character
        raise PretuneError(f"{str(path)!r} is no name of a file ({error})") from None
