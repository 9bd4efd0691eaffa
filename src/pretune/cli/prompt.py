"""`pretune prompt`: in-context learning, measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pretune.cli.app import command, to_stderr, to_stdout
from pretune.cli.options import (
    DeviceOption,
    EncodingOption,
    JsonOption,
    MaxCharsOption,
    PickleOption,
    QuotingOption,
    RunArgument,
)
from pretune.errors import PretuneError

Shots = Annotated[
    str, typer.Option(help="Examples before each question; several numbers with commas.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Draws of the examples.")]
Train = Annotated[
    str | None,
    typer.Option(
        help="Where examples are drawn from. Default: DATA, without evaluating on those drawn."
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        help="A file or a text with {column} for the data and {answer}, \\n for a new line. "
        "Default: each column on a line, and the answer."
    ),
]
Label = Annotated[str, typer.Option(help="The column of the labels.")]
Answers = Annotated[
    str | None,
    typer.Option(
        help="What stands for each label, e.g. 0=negative,1=positive. Default: the labels."
    ),
]
Score = Annotated[
    str,
    typer.Option(
        help="How an answer is chosen: likelihood, mean (per token), per_character, per_byte, "
        "calibrated, pmi, generate."
    ),
]
Balanced = Annotated[
    bool, typer.Option("--balanced/--random", help="As many examples of each label as possible.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")]
Output = Annotated[Path | None, typer.Option(help="Write all figures and predictions, as JSON.")]
BatchTokens = Annotated[
    int, typer.Option(min=1, help="Tokens at a time; changes memory and speed only.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@command(
    "prompt",
    "pretune prompt openai-community/gpt2 dev.tsv --train train.tsv --shots 0,1,5 --seeds 5 "
    "--template 'Review: {sentence}\\nSentiment: {answer}' --answers 0=negative,1=positive",
    "pretune prompt runs/novels sms.tsv --score calibrated --limit 200 --output results.json",
)
def prompt(
    run: RunArgument,
    data: Annotated[str, typer.Argument(help="A labelled file, or a Hub dataset.")],
    shots: Shots = "0,1,5",
    seeds: Seeds = 5,
    train: Train = None,
    template: TemplateOption = None,
    label: Label = "label",
    answers: Answers = None,
    score: Score = "likelihood",
    balanced: Balanced = True,
    limit: Limit = None,
    output: Output = None,
    batch_tokens: BatchTokens = 8192,
    encoding: EncodingOption = "utf-8",
    quoting: QuotingOption = "auto",
    max_chars: MaxCharsOption = None,
    device: DeviceOption = "auto",
    allow_pickle: PickleOption = False,
    quiet: Quiet = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what a language model answers from examples in its prompt, untrained."""
    from pretune import api
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.render.result_views import few_shot_view

    if output is not None and not output.resolve().parent.is_dir():
        raise PretuneError(f"--output {output}: no such folder", "Make it first.")
    with _progress(quiet) as show:
        found = api.prompt(
            api.load(run, allow_pickle=allow_pickle),
            data,
            train=train,
            device=device,
            batch_tokens=batch_tokens,
            encoding=encoding,
            quoting=quoting,
            max_chars=max_chars,
            **({} if max_chars is None else {"max_chars": max_chars}),
            progress=show,
            shots=_numbers(shots),
            seeds=range(seeds),
            template=_template(template, encoding),
            label=label,
            answers=_answers(answers),
            score=score,
            balanced=balanced,
            limit=limit,
        )
    if output is not None:
        text = json.dumps(found.to_dict(), ensure_ascii=False, indent=2)
        atomic_text(output, text + "\n")
    out = to_stdout()
    if as_json:
        out.print_json(data=found.to_dict(predictions=False))
        return
    out.print(few_shot_view(found))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PretuneError(
            f"--shots {text}: expected whole numbers with commas", "For example 0,1,5."
        ) from None


def _answers(text: str | None) -> dict[str, str] | list[str] | None:
    """`a,b` as a list, `0=a,1=b` as a map."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    if not any(equals for _, equals, _ in pairs):
        return parts
    if not all(name and equals and shown for name, equals, shown in pairs):
        raise PretuneError(
            f"--answers {text}: some have a label and some have not",
            "Write all as LABEL=ANSWER, for example 0=negative,1=positive.",
        )
    return {name: shown for name, _, shown in pairs}


def _template(given: str | None, encoding: str) -> str | None:
    """The text of a template: of a file of that name, or itself."""
    from pretune.text.decode import decode_file

    if given is None:
        return None
    if "{" not in given:
        path = Path(given)
        if not path.is_file():
            raise PretuneError(
                f"--template {given}: no such file, and no template, which has {{answer}} in it"
            )
        return decode_file(path, encoding).replace("\r\n", "\n").removesuffix("\n")
    return given.replace("\\n", "\n")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, and what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = to_stderr()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("asking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
