"""`pretune generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from pretune.cli import options
from pretune.cli.app import command, print_json_line, print_live, to_stderr
from pretune.errors import DataError, PretuneError

if TYPE_CHECKING:
    from pretune.bundle.bundle import Bundle
    from pretune.decoding.continuations import Generation, TextChunk
    from pretune.decoding.decoding import Decoding
    from pretune.inference.generate import TextGenerator
    from pretune.tasks.dialogue.layouts import TemplateLayout


@command(
    "generate",
    "pretune generate runs/novels --prompt 'It was a dark night' --temperature 0.8",
    "pretune generate openai-community/gpt2 --prompt 'Who are you?' --stop '\\n' --top-k 40",
    "pretune generate runs/novels --file openings.txt --beams 4 --json > stories.jsonl",
    "echo 'Once upon a time' | pretune generate runs/novels --samples 3 --seed 1",
)
def generate(
    context: typer.Context,
    run: options.Run,
    prompts: Annotated[
        list[str] | None, Option("--prompt", help="The text to continue; may be repeated.")
    ] = None,
    file: Annotated[Path | None, Option(help="Plain text with one prompt a line.")] = None,
    samples: Annotated[int, Option(help="Continuations of each prompt.")] = 1,
    max_new_tokens: Annotated[
        int, Option(help="Maximum number of tokens of a continuation.")
    ] = 128,
    temperature: Annotated[float, options.TEMPERATURE] = 1.0,
    top_k: Annotated[int, options.TOP_K] = 0,
    top_p: Annotated[float, options.TOP_P] = 0.95,
    min_p: Annotated[
        float,
        Option(
            help="Sample only from tokens with at least this fraction of the highest probability."
        ),
    ] = 0.0,
    typical_p: Annotated[
        float,
        Option(
            help="Sample from the most typical tokens that together have this probability; 1: "
            "from all."
        ),
    ] = 1.0,
    repetition_penalty: Annotated[float, options.REPETITION_PENALTY] = 1.0,
    no_repeat_ngram: Annotated[
        int, Option(help="Never write the same n tokens in a row twice; 0: allowed.")
    ] = 0,
    beams: Annotated[int, Option(help="Beam search with this many beams; 1: sample instead.")] = 1,
    length_penalty: Annotated[
        float, Option(help="For beam search: above 0 favours longer texts.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, Option(help="End before this text; may be repeated. \\n is a new line.")
    ] = None,
    seed: Annotated[int, options.SAMPLING_SEED] = 0,
    stream: Annotated[
        bool | None,
        Option("--stream/--no-stream", help="Show text as it comes. Default: on a terminal."),
    ] = None,
    batch_size: Annotated[
        int, Option(min=1, help="Continuations at a time; changes memory and speed only.")
    ] = 16,
    encoding: options.Encoding = "utf-8",
    template: Annotated[
        bool | None,
        Option(
            "--template/--no-template",
            help="Lay out prompts as messages by the chat template. Default: if the model was "
            "trained with one (task instruct), or is a published one that has one.",
        ),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    allow_pickle: options.AllowPickle = False,
    as_json: Annotated[
        bool, Option("--json", help="Print JSON lines with tokens and log-probabilities.")
    ] = False,
) -> None:
    """Let a language model continue a prompt. Without --prompt and --file, it reads standard input.

    In a file and through a pipe, each line is a prompt.
    """
    from pretune.bundle.bundle import load
    from pretune.decoding.decoding import Decoding
    from pretune.inference.generate import TextGenerator

    # Settings and prompts are checked before the model is loaded.
    names = {field.name for field in fields(Decoding)} & context.params.keys()
    settings = {name: context.params[name] for name in names}
    settings["stop"] = [text.replace("\\n", "\n") for text in stop or ()]
    decoding = Decoding(**settings)
    given = _prompts(prompts, file, encoding)
    bundle = load(run, allow_pickle=allow_pickle)
    layout = {"template": _template_for(bundle, template)}
    writer = TextGenerator.of(
        bundle, device=device, precision=precision, batch_size=batch_size, **layout
    )
    # A blank line keeps its place; a prompt that is given by itself may be empty.
    blank = [] if prompts else [i for i, text in enumerate(given) if not text.strip()]
    if blank:
        lines = "1 blank line" if len(blank) == 1 else f"{len(blank):,} blank lines"
        to_stderr().say(f"{lines}: an empty continuation each, so that all stay in line")
    pieces = _pieces(writer, given, blank, decoding)
    if as_json:
        for generation in _in_order(pieces, samples):
            print_json_line(generation.to_dict())
        return
    live = sys.stdout.isatty() if stream is None else stream
    # A continuation goes on in the line of its prompt, a reply begins one of its own.
    shown = given if layout["template"] is None else [f"{text}\n" for text in given]
    _show(pieces, shown, samples, live)


def _template_for(bundle: Bundle, wanted: bool | None) -> TemplateLayout | None:
    """Return the chat template that lays out prompts as messages; None: they are continued."""
    from pretune.bundle.task_file import TASK_FILE
    from pretune.inference.prompts import template_of

    if wanted is False:
        return None
    # A model of ours says by its task what it was trained for, a published one does not.
    published = bundle.folder is not None and not (bundle.folder / TASK_FILE).is_file()
    template = template_of(bundle, always=published or wanted is True)
    if wanted is None and published and template is not None:
        to_stderr().say(
            "prompts are laid out as messages by the tokenizer's chat template "
            "(--no-template: they are continued as they are)"
        )
    if wanted and template is None:
        raise PretuneError(
            "--template: the model's tokenizer has no chat template",
            "Train it by the task instruct, or put a chat_template into tokenizer_config.json.",
        )
    return template


def _prompts(prompts: list[str] | None, file: Path | None, encoding: str) -> list[str]:
    """The prompts given as options, in a file, or through a pipe."""
    if prompts and file:
        raise PretuneError("give either --prompt or --file, not both")
    if prompts:
        return prompts
    # Lines of a file, or of a pipe; a terminal would wait without saying for what.
    if file is not None:
        from pretune.text.decode import decode_file, lines_of

        lines, origin = lines_of(decode_file(file, encoding)), str(file)
    elif sys.stdin.isatty():
        raise PretuneError("no prompt: give --prompt TEXT, --file FILE, or lines through a pipe")
    else:
        from pretune.inference.predict import stream_lines

        batches = stream_lines(sys.stdin.fileno(), encoding)
        lines, origin = [line for batch in batches for _, line in batch], "input"
    if not any(line.strip() for line in lines):
        raise DataError(f"{origin}: no prompt in it", "Give one prompt a line.")
    return lines


def _pieces(
    writer: TextGenerator, prompts: list[str], blank: list[int], decoding: Decoding
) -> Iterator[TextChunk]:
    """Yield the pieces of all continuations; those of `blank` prompts (0-based) are empty."""
    from pretune.decoding.continuations import Generation, TextChunk

    for number in blank:
        for sample in range(decoding.samples):
            empty = Generation(prompts[number], sample, "", "blank", (), ())
            yield TextChunk(number, sample, "", empty)
    asked = sorted({*range(len(prompts))} - {*blank})
    for piece in writer.stream([prompts[i] for i in asked], decoding):
        yield replace(piece, prompt=asked[piece.prompt])


def _in_order(pieces: Iterator[TextChunk], samples: int) -> Iterator[Generation]:
    """Yield whole continuations in the order of the prompts, each as soon as its turn has come."""
    waiting: dict[int, Generation] = {}
    following = 0
    for piece in pieces:
        if piece.done is not None:
            waiting[piece.prompt * samples + piece.sample] = piece.done
        # One that ended may have been what several others waited for.
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _show(pieces: Iterator[TextChunk], prompts: list[str], samples: int, live: bool) -> None:
    """Print prompts with their `samples` continuations, one after the other.

    The pieces of all continuations come mixed. With `live` a continuation is printed while it is
    being written, else when it is whole.
    """
    total = len(prompts) * samples
    texts: dict[int, str] = {}
    ended: set[int] = set()
    current, opened = 0, False
    for piece in pieces:
        number = piece.prompt * samples + piece.sample
        texts[number] = texts.get(number, "") + piece.text
        if piece.done is not None:
            ended.add(number)
        # Print what the current continuation has, and go on to those that ended in the meantime.
        while current < total and (current in ended or (live and texts.get(current))):
            if not opened:
                heading = f"== {current + 1}/{total} ==\n" if total > 1 else ""
                print_live(heading + prompts[current // samples])
            opened = True
            print_live(texts.pop(current, ""))
            if current not in ended:
                break
            print_live("\n")
            current, opened = current + 1, False
