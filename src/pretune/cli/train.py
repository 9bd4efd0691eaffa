"""`pretune train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from pretune.cli import options
from pretune.cli.app import STOPPED_BY, command, fail, print_result
from pretune.errors import PretuneError

if TYPE_CHECKING:
    from pretune.training.run_result import RunResult


@command(
    "train",
    "pretune train tickets.tsv",
    "pretune train mrpc model.from=minilm train.epochs=2",
    "pretune train my-recipe.yaml output=runs/second --seeds 3",
    "pretune train --resume runs/second",
    "torchrun --nproc-per-node 2 -m pretune train my-recipe.yaml",
)
def train(
    recipe: Annotated[str | None, options.RECIPE] = None,
    overrides: options.Overrides = None,
    resume: Annotated[
        str | None,
        Option(metavar="RUN", help="Continue a stopped or killed run, exactly where it was."),
    ] = None,
    seeds: Annotated[
        int, Option(min=1, help="Train with this many seeds and show the mean ± sd.")
    ] = 1,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Delete an earlier run in the output folder.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Train or fine-tune a model as a recipe says.

    Everything goes into the recipe's output folder: the best and the last model, the logs, and the
    recipe itself with every default written out.

    Ctrl-C, SIGTERM or a terminal that closes (SIGHUP) finishes the update, saves, and exits with
    130, 143 or 129. Without a reader of its notes (`| head`) training goes on.
    """
    from pretune.training.run import resume as resume_run
    from pretune.training.run import resume_command, train_recipe, train_seeds
    from pretune.training.stop import Interrupted

    # With --resume the first argument is no recipe but the first override.
    changes = [*([recipe] if resume is not None and recipe is not None else []), *(overrides or [])]
    try:
        # Go on with a run that was stopped.
        if resume is not None:
            if seeds > 1 or overwrite:
                raise PretuneError("--resume continues one run: no --seeds, no --overwrite")
            _show_result(resume_run(resume, changes, quiet=quiet), as_json=as_json)
            return
        if recipe is None:
            raise PretuneError(
                "there is nothing to train", "pretune train RECIPE_OR_FILE, or --resume RUN"
            )
        from pretune.recipe.recipe import Recipe

        # Or begin: once, or with several seeds.
        chosen = Recipe.load(recipe, changes)
        if seeds == 1:
            result = train_recipe(chosen, overwrite=overwrite, quiet=quiet)
            _show_result(result, as_json=as_json)
            return
        several = train_seeds(chosen, seeds, overwrite=overwrite, quiet=quiet)
    except Interrupted as stopped:
        # A run by itself is resumed; with several seeds the same command skips those that are done.
        again = resume_command(stopped.folder)
        if "=FILE" in again:
            again += "  (the data came through a pipe, and is gone: save the same to FILE)"
        if seeds > 1:
            again = "the same command" + (", without --overwrite" if overwrite else "")
        fail(
            f"{stopped}\ngo on:  {again}\nuse it: {_usage(stopped.folder, 'last')}",
            STOPPED_BY + stopped.signal,
        )
    from pretune.experiments.seeds import seeds_to_dict
    from pretune.render.result_views import seeds_view

    shown = seeds_view(several)
    print_result(seeds_to_dict(several), shown, as_json=as_json, saved=True)


def _show_result(result: RunResult, *, as_json: bool) -> None:
    """Print the outcome; in a group of processes only the first one does."""
    from pretune.render.result_views import run_view, sheet_view
    from pretune.training.distributed import environment_world
    from pretune.training.sample_sheet import SAMPLES, read_sheet

    if not environment_world().main:
        return
    # What reinforcement learning did is seen in the replies; of them all the file tells.
    place = Path(result.folder) / SAMPLES
    sheet = sheet_view(read_sheet(place))
    replies = () if sheet is None else (sheet, f"all replies: {place}")
    print_result(
        result.to_dict(),
        run_view(result),
        *replies,
        f"ask it:      {_usage(result.folder)}",
        f"evaluate it: pretune evaluate {result.folder} DATA",
        f"look at it:  pretune report {result.folder}",
        as_json=as_json,
        saved=True,
    )


def _usage(run: str | Path, checkpoint: str = "") -> str:
    """The command that asks the model of a run, or of a checkpoint in it."""
    from pretune.tasks.builtin import task_class
    from pretune.training.run_folder import RunFolder

    task = RunFolder(Path(run)).recipe().task
    return task_class(task.name)(task).usage(str(Path(run) / checkpoint))
