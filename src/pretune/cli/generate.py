"""`pretune generate`: let a language model write."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pretune.cli.app import command
from pretune.cli.options import DeviceOption, EncodingOption, PickleOption, RunArgument
from pretune.errors import DataError, PretuneError

if TYPE_CHECKING:
    from pretune.bundle.bundle import Bundle
    from pretune.decoding.writer import Generation, Piece
    from pretune.tasks.dialogue.layouts import TemplateLayout


Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="What to go on from; may be given several times."),
]
PromptFile = Annotated[Path | None, typer.Option(help="Plain text with one prompt a line.")]
Samples = Annotated[int, typer.Option(help="Continuations of each prompt.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens of a continuation.")]
Temperature = Annotated[
    float, typer.Option(help="Above 1 bolder, below 1 safer; 0: always the likeliest token.")
]
TopK = Annotated[int, typer.Option(help="Only the k likeliest tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option(help="Only the likeliest tokens that have this share together; 1: all.")
]
MinP = Annotated[
    float, typer.Option(help="Only tokens at least so many times as likely as the likeliest.")
]
TypicalP = Annotated[
    float, typer.Option(help="Only the most typical tokens, of this share together; 1: all.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1: what was said already becomes less likely.")
]
NoRepeatNgram = Annotated[int, typer.Option(help="No n tokens in a row twice; 0: they may.")]
Beams = Annotated[
    int, typer.Option(help="Search for the likeliest text with so many at a time; 1: draw.")
]
LengthPenalty = Annotated[
    float, typer.Option(help="Of a search: above 0 longer texts win more often.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="End before this text; may be given several times. \\n is a new line."),
]
Seed = Annotated[int, typer.Option(help="Of what is drawn: the same seed, the same text.")]
Stream = Annotated[
    bool | None,
    typer.Option("--stream/--no-stream", help="Show text as it comes. Default: on a terminal."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Continuations at a time; changes memory and speed only.")
]
Template = Annotated[
    bool | None,
    typer.Option(
        "--template/--no-template",
        help="Prompts are messages, laid out by the chat template. Default: where the model was "
        "trained with one (task instruct).",
    ),
]
JsonLines = Annotated[
    bool,
    typer.Option("--json", help="One JSON object a line, with tokens and log-probabilities."),
]


@command(
    "generate",
    "pretune generate runs/novels --prompt 'It was a dark night' --temperature 0.8",
    "pretune generate openai-community/gpt2 --prompt 'Who are you?' --stop '\\n' --top-k 40",
    "pretune generate runs/novels --file openings.txt --beams 4 --json > stories.jsonl",
    "echo 'Once upon a time' | pretune generate runs/novels --samples 3 --seed 1",
)
def generate(
    run: RunArgument,
    prompts: Prompts = None,
    file: PromptFile = None,
    samples: Samples = 1,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    typical_p: TypicalP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    no_repeat_ngram: NoRepeatNgram = 0,
    beams: Beams = 1,
    length_penalty: LengthPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    stream: Stream = None,
    batch_size: BatchSize = 16,
    encoding: EncodingOption = "utf-8",
    template: Template = None,
    device: DeviceOption = "auto",
    allow_pickle: PickleOption = False,
    as_json: JsonLines = False,
) -> None:
    """Let a language model go on from a prompt. Without --prompt and --file, from standard input.

    In a file and through a pipe, each line is a prompt.
    """
    from pretune.bundle.bundle import load
    from pretune.decoding.sampling import Decoding
    from pretune.inference.generate import TextGenerator

    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
        beams=beams,
        length_penalty=length_penalty,
        samples=samples,
        stop=[text.replace("\\n", "\n") for text in stop or ()],
        seed=seed,
    )
    given = _prompts(prompts, file, encoding)
    bundle = load(run, allow_pickle=allow_pickle)
    how = {} if template is None else {"template": _template(bundle) if template else None}
    writer = TextGenerator.of(bundle, device=device, batch_size=batch_size, **how)
    pieces = writer.stream(given, decoding)
    if as_json:
        for done in _in_order(pieces, samples):
            print(json.dumps(done.to_dict(), ensure_ascii=False), flush=True)
        return
    live = sys.stdout.isatty() if stream is None else stream
    _show(pieces, given, samples, live)


def _template(bundle: Bundle) -> TemplateLayout:
    from pretune.inference.prompts import template_of

    found = template_of(bundle, always=True)
    if found is None:
        raise PretuneError(
            "--template: the model's tokenizer has no chat template",
            "Train it by the task instruct, or put a chat_template into tokenizer_config.json.",
        )
    return found


def _prompts(prompts: list[str] | None, file: Path | None, encoding: str) -> list[str]:
    if prompts and file:
        raise PretuneError("give either --prompt or --file, not both")
    if prompts:
        return prompts
    if file is not None:
        from pretune.text.decode import decode_file, lines_of

        lines, origin = lines_of(decode_file(file, encoding)), str(file)
    elif sys.stdin.isatty():
        raise PretuneError("no prompt: give --prompt TEXT, --file FILE, or lines through a pipe")
    else:
        from pretune.inference.predict import stream_lines

        batches = stream_lines(sys.stdin.fileno(), encoding)
        lines, origin = [line for batch in batches for _, line in batch], "input"
    found = [line for line in lines if line.strip()]
    if not found:
        raise DataError(f"{origin}: no prompt in it", "Give one prompt a line.")
    return found


def _in_order(pieces: Iterator[Piece], samples: int) -> Iterator[Generation]:
    """Whole continuations in the order of the prompts, each when those before it are there."""
    waiting: dict[int, Generation] = {}
    following = 0
    for piece in pieces:
        if piece.done is not None:
            waiting[piece.prompt * samples + piece.sample] = piece.done
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _show(pieces: Iterator[Piece], prompts: list[str], samples: int, live: bool) -> None:
    """Prompts with their continuations; several take turns in being written, not in being shown."""
    total = len(prompts) * samples
    texts: dict[int, str] = {}
    ended: set[int] = set()
    current = 0
    opened = False
    for piece in pieces:
        number = piece.prompt * samples + piece.sample
        texts[number] = texts.get(number, "") + piece.text
        if piece.done is not None:
            ended.add(number)
        while current < total and (current in ended or (live and texts.get(current))):
            if not opened:
                put(
                    (f"== {current + 1}/{total} ==\n" if total > 1 else "")
                    + prompts[current // samples]
                )
            opened = True
            put(texts.pop(current, ""))
            if current not in ended:
                break
            put("\n")
            current, opened = current + 1, False


#: Control characters, but for tabs and new lines: what a model writes must not steer a terminal.
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))


def put(text: str) -> None:
    """Show some of what a model writes, at once."""
    sys.stdout.write(text.translate(_CONTROLS))
    sys.stdout.flush()
