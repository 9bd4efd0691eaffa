"""`pretune quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pretune.cli import options
from pretune.cli.app import command, print_result, progress_bar


@command(
    "quantize",
    "pretune quantize runs/tickets --data dev.tsv -o tickets-int8",
    "pretune predict tickets-int8 'Where is my parcel?'   (in 8 bits, without --precision)",
    "pretune quantize minilm --data texts.txt -o minilm-int8   (vectors: the cosine decides)",
)
def quantize(
    context: typer.Context,
    run: options.Run,
    data: Annotated[
        str,
        Option(
            help="A labelled file, or a Hub dataset, that was not trained on; for a model "
            "without a task, texts."
        ),
    ],
    output: Annotated[
        Path | None, Option("--output", "-o", help="The folder to write; must not exist yet.")
    ] = None,
    max_loss: Annotated[
        float,
        Option(
            help="Points of the task's metric, of 100, that may be lost; of a loss or perplexity, "
            "percent."
        ),
    ] = 0.5,
    min_agreement: Annotated[
        float, Option(help="Percent of the answers that must be the same as in float32.")
    ] = 98.5,
    force: Annotated[
        bool,
        Option("--force", help="Write the safest setting where none passes; the model says so."),
    ] = False,
    dry_run: options.DryRun = False,
    overwrite: options.ReplaceModel = False,
    limit: options.Limit = None,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Round a model to 8 bits, as far as its answers stay the same.

    On a CPU it is faster, and its file is smaller. Settings are tried from safest to fastest; if
    none is as good as float32, nothing is written.
    """
    from pretune.bundle.bundle import load, save
    from pretune.checkpoints.manifest import write_manifest
    from pretune.export.output_folder import check_output_folder, output_folder
    from pretune.export.quality_gate import GateError, GateLimits, quantize
    from pretune.render.smaller_views import gate_view

    # Mistakes in the command line are reported before the model is loaded.
    limits = GateLimits(max_loss, min_agreement)
    target = options.written_folder(output, dry_run=dry_run)
    if target is not None:
        check_output_folder(target, overwrite=overwrite)
    bundle = load(run, allow_pickle=allow_pickle)
    examples = options.examples_to_judge(context, run, bundle, data)
    with progress_bar("measuring") as bar:
        result = quantize(bundle, examples, limits, force=force, progress=bar)
    # Without a setting that passes there is nothing to write.
    last = "nothing was written"
    if result.chosen is not None and target is not None:
        with output_folder(target, overwrite=overwrite) as aside:
            save(bundle, aside, int8=result.record())
            write_manifest(aside)
        task, place = bundle.task, str(target)
        ask = f"pretune embed {place} FILE" if task is None else task.usage(place)
        last = f"wrote {place}; it answers in 8 bits: {ask}"
    print_result(result.to_dict(), gate_view(result), last, as_json=as_json, saved=True)
    if result.chosen is None:
        raise GateError(result)
