"""`pretune prompt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Option

from pretune.cli import options
from pretune.cli.app import command, print_result, progress_bar
from pretune.errors import PretuneError


@command(
    "prompt",
    "pretune prompt openai-community/gpt2 dev.tsv --train train.tsv --shots 0,1,5 --seeds 5 "
    "--template 'Review: {sentence}\\nSentiment: {answer}' --answers 0=negative,1=positive",
    "pretune prompt runs/novels sms.tsv --score calibrated --limit 200 --output results.json",
)
def prompt(
    run: options.Run,
    data: options.LabelledData,
    shots: Annotated[
        str, Option(help="Examples before each question; several numbers with commas.")
    ] = "0,1,5",
    seeds: Annotated[int, Option(min=1, help="Draws of the examples.")] = 5,
    train: Annotated[
        str | None,
        Option(
            help="Where examples are drawn from. Default: DATA, without evaluating on those drawn."
        ),
    ] = None,
    template: Annotated[
        str | None,
        Option(
            help="A file or a text with {column} for the data and {answer}, \\n for a new line. "
            "Default: each column on a line, and the answer."
        ),
    ] = None,
    label: Annotated[str, Option(help="The column of the labels.")] = "label",
    answers: Annotated[
        str | None,
        Option(
            help="The word that stands for each label, e.g. 0=negative,1=positive. Default: the "
            "labels."
        ),
    ] = None,
    score: Annotated[
        str,
        Option(
            help="How an answer is chosen: likelihood, mean (per token), per_character, per_byte, "
            "calibrated, pmi, generate."
        ),
    ] = "likelihood",
    balanced: Annotated[
        bool, Option("--balanced/--random", help="Draw as many examples of each label as possible.")
    ] = True,
    chat: Annotated[
        bool,
        Option(
            "--chat",
            help="Lay out each question as a message and each answer as a reply, by the model's "
            "chat template.",
        ),
    ] = False,
    limit: options.Limit = None,
    output: Annotated[
        Path | None, Option(help="Write all figures and predictions to this JSON file.")
    ] = None,
    batch_tokens: options.BatchTokens = 8192,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    device: options.Device = "auto",
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure how well a language model answers from examples in its prompt alone."""
    from pretune import api
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.render.result_views import few_shot_view

    # The file is written at the end, so whether it can be is checked first.
    if output is not None and not output.resolve().parent.is_dir():
        raise PretuneError(f"--output {output}: no such folder", "Make it first.")
    # Ask with each number of examples, and with each draw of them.
    with progress_bar("asking", shown=not quiet) as bar:
        result = api.prompt(
            api.load(run, allow_pickle=allow_pickle),
            data,
            train=train,
            device=device,
            batch_tokens=batch_tokens,
            encoding=encoding,
            quoting=quoting,
            max_chars=max_chars,
            progress=bar,
            shots=_numbers(shots),
            seeds=range(seeds),
            template=_template(template, encoding),
            label=label,
            answers=_answers(answers),
            score=score,
            balanced=balanced,
            chat=chat,
            limit=limit,
        )
    # The file has every prediction, what is printed only the figures.
    if output is not None:
        text = json.dumps(result.to_dict(), ensure_ascii=False, indent=2)
        atomic_text(output, text + "\n")
    print_result(result.to_dict(predictions=False), few_shot_view(result), as_json=as_json)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise PretuneError(
            f"--shots {text}: expected whole numbers with commas", "For example 0,1,5."
        ) from None


def _answers(text: str | None) -> dict[str, str] | list[str] | None:
    """Parse `a,b` as a list and `0=a,1=b` as a mapping."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    if not any(equals for _, equals, _ in pairs):
        return parts
    if not all(name and equals and answer for name, equals, answer in pairs):
        raise PretuneError(
            f"--answers {text}: some have a label and some have not",
            "Write all as LABEL=ANSWER, for example 0=negative,1=positive.",
        )
    return {name: answer for name, _, answer in pairs}


def _template(given: str | None, encoding: str) -> str | None:
    """The text of a template: the option's value, or the contents of the file that it names."""
    from pretune.text.byte_stream import is_file
    from pretune.text.decode import decode_file

    if given is None:
        return None
    # On a command line, \n is easier to type than a new line.
    if "{" in given:
        return given.replace("\\n", "\n")
    path = Path(given)
    if not is_file(path):
        raise PretuneError(
            f"--template {given}: neither a file nor a template, which contains {{answer}}"
        )
    return decode_file(path, encoding).replace("\r\n", "\n").removesuffix("\n")
