"""`pretune prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pretune.cli import options
from pretune.cli.app import command, print_result, progress_bar


@command(
    "prune",
    "pretune prune runs/tickets --layers top:2 --data dev.tsv -o smaller",
    "pretune prune runs/tickets --heads 0.3 --ffn 0.5 --data dev.tsv --dry-run",
    "pretune prune runs/tickets --vocab train.tsv --vocab dev.tsv --data dev.tsv -o smaller",
    "pretune train train.tsv model.from=smaller   (afterwards, to recover)",
)
def prune(
    context: typer.Context,
    run: options.Run,
    output: Annotated[
        Path | None, Option("--output", "-o", help="The folder to write; must not exist yet.")
    ] = None,
    layers: Annotated[
        str | None,
        Option(
            metavar="LAYERS",
            help="top:2: remove the two layers nearest to the output; every-other: keep 0, 2, 4, "
            "...; or the layers to keep, as 0,2,4.",
        ),
    ] = None,
    heads: Annotated[float, Option(help="Share of all attention heads to remove, e.g. 0.3.")] = 0.0,
    ffn: Annotated[
        float, Option(help="Share of each feed-forward block's neurons to remove, e.g. 0.5.")
    ] = 0.0,
    vocab: Annotated[
        list[str] | None,
        Option(
            metavar="DATA",
            help="Keep the tokens that this data uses, with or without labels; may be repeated. "
            "The tokenizer is cut with the model.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        Option(
            help="A labelled file, or a Hub dataset, to measure what matters, and the model before "
            "and after. Default: none, and the parts with the smallest weights are removed."
        ),
    ] = None,
    dry_run: options.DryRun = False,
    overwrite: options.ReplaceModel = False,
    limit: options.Limit = None,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    device: options.Device = "auto",
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Make a smaller model: fewer layers, attention heads, neurons or tokens.

    What is removed is gone, not masked. Train the smaller model afterwards to recover.
    """
    from pretune.bundle.bundle import load, save
    from pretune.checkpoints.manifest import write_manifest
    from pretune.export.cut_vocabulary import used_text
    from pretune.export.output_folder import check_output_folder, output_folder
    from pretune.export.pruning import PruningPlan, prune
    from pretune.render.smaller_views import pruning_table

    # Mistakes in the command line are reported before the model is loaded.
    plan = PruningPlan(layers, heads, ffn, tuple(vocab or ()))
    if not vocab:
        options.only_with_data(context, data, "--data", validation=False)
    target = options.written_folder(output, dry_run=dry_run)
    if target is not None:
        check_output_folder(target, overwrite=overwrite)
    bundle = load(run, allow_pickle=allow_pickle)
    records = None
    if data is not None:
        records = options.records_to_examine(context, run, bundle, data).head(limit)
    used = None
    if vocab:
        names = options.column_pairs(columns)
        used = used_text(bundle, vocab, columns=names, encoding=encoding, quoting=quoting)
    with progress_bar("measuring") as bar:
        result = prune(bundle, plan, records, used=used, device=device, progress=bar)
    last = "nothing was written (--dry-run)"
    if target is not None:
        with output_folder(target, overwrite=overwrite) as place:
            save(bundle, place)
            result.write(place)
            write_manifest(place)
        last = f"wrote {target}; train it to recover: pretune train RECIPE model.from={target}"
    print_result(
        result.to_dict(), pruning_table(result).terminal(), last, as_json=as_json, saved=True
    )
