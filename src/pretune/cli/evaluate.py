"""`pretune evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from pretune.cli.app import command, to_stdout
from pretune.cli.options import (
    ColumnOption,
    DeviceOption,
    EncodingOption,
    JsonOption,
    MaxCharsOption,
    PickleOption,
    QuotingOption,
    RunArgument,
    TaskSetOption,
    column_pairs,
    option_pairs,
)


@command(
    "evaluate",
    "pretune evaluate runs/tickets test.tsv",
    "pretune evaluate runs/translate test.de,test.en --set beams=1",
    "pretune evaluate runs/chat-zh dialogues.jsonl --set samples=500",
)
def evaluate(
    run: RunArgument,
    data: Annotated[str, typer.Argument(help="A labelled file, or a Hub dataset.")],
    columns: ColumnOption = None,
    encoding: EncodingOption = "utf-8",
    quoting: QuotingOption = "auto",
    max_chars: MaxCharsOption = None,
    device: DeviceOption = "auto",
    options: TaskSetOption = None,
    allow_pickle: PickleOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a trained model on labelled data."""
    from pretune import api
    from pretune.render.result_views import confusion_view, evaluation_view, samples_view

    result = api.evaluate(
        api.load(run, options=option_pairs(options), allow_pickle=allow_pickle),
        data,
        columns=column_pairs(columns),
        device=device,
        encoding=encoding,
        quoting=quoting,
        max_chars=max_chars,
        quiet=False,
    )
    out = to_stdout()
    if as_json:
        out.print_json(data=result.to_dict())
        return
    out.print(evaluation_view(result))
    for more in (confusion_view(result.details), samples_view(result.details)):
        if more is not None:
            out.print(more)
