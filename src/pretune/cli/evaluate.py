"""`pretune evaluate`."""

from __future__ import annotations

from pretune.cli import options
from pretune.cli.app import command, print_result


@command(
    "evaluate",
    "pretune evaluate runs/tickets test.tsv",
    "pretune evaluate runs/translate test.de,test.en --set beams=1",
    "pretune evaluate runs/chat-zh dialogues.jsonl --set samples=500",
)
def evaluate(
    run: options.Run,
    data: options.LabelledData,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    device: options.Device = "auto",
    task_options: options.TaskSet = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure a trained model on labelled data."""
    from pretune import api
    from pretune.render.result_views import confusion_view, evaluation_view, samples_view

    result = api.evaluate(
        api.load(run, options=options.option_pairs(task_options), allow_pickle=allow_pickle),
        data,
        columns=options.column_pairs(columns),
        device=device,
        encoding=encoding,
        quoting=quoting,
        max_chars=max_chars,
        quiet=False,
    )
    more = (confusion_view(result.details), samples_view(result.details))
    views = (evaluation_view(result), *(view for view in more if view is not None))
    print_result(result.to_dict(), *views, as_json=as_json)
