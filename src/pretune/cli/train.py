"""`pretune train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from pretune.cli import options
from pretune.cli.app import STOPPED_BY, command, fail, print_result, progress_bar
from pretune.errors import PretuneError

if TYPE_CHECKING:
    from pretune.recipe.recipe import Recipe
    from pretune.training.run_result import RunResult

#: In place of a run's folder: that of the recipe, whether there is a run in it or not.
AUTO = "auto"


@command(
    "train",
    "pretune train tickets.tsv",
    "pretune train mrpc model.from=minilm train.epochs=2",
    "pretune train my-recipe.yaml output=runs/second --seeds 3",
    "pretune train tickets.tsv --folds 5 --group customer",
    "pretune train --resume runs/second",
    "pretune train my-recipe.yaml --resume auto",
    "torchrun --nproc-per-node 2 --max-restarts 3 -m pretune train my-recipe.yaml --resume auto",
    recipe=True,
)
def train(
    recipe: Annotated[str | None, options.RECIPE] = None,
    overrides: options.Overrides = None,
    resume: Annotated[
        str | None,
        Option(
            metavar="RUN",
            help="Continue a stopped or killed run, exactly where it was. auto: the run of RECIPE, "
            "or a new one where there is none.",
        ),
    ] = None,
    seeds: Annotated[
        int, Option(min=1, help="Train with this many seeds and show the mean ± sd.")
    ] = 1,
    folds: Annotated[
        int | None,
        Option(
            min=2,
            help="Cross-validation: train this many times, each validated on another part of the "
            "data, and show the mean ± sd.",
        ),
    ] = None,
    group: Annotated[
        str | None,
        Option(
            metavar="COLUMN",
            help="With --folds: keep records with the same value of this column in one part.",
        ),
    ] = None,
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
    130, 143 or 129. If what reads its output ends (`| head`), training goes on.
    """
    from pretune.training.passing import resume_command
    from pretune.training.run import resume as resume_run
    from pretune.training.run import train_or_resume, train_recipe
    from pretune.training.several_runs import train_seeds
    from pretune.training.stop import Interrupted

    changes, named = list(overrides or []), resume not in (None, AUTO)
    if named and recipe is not None:
        changes.insert(0, recipe)  # with a run, the first argument is the first override
    try:
        if resume is not None and (seeds > 1 or overwrite or folds is not None):
            raise PretuneError("--resume continues one run: no --seeds, --folds or --overwrite")
        # Go on with a run that was stopped.
        if resume is not None and named:
            _show_result(resume_run(resume, changes, quiet=quiet), as_json=as_json)
            return
        if recipe is None:
            raise PretuneError(
                "there is nothing to train",
                "pretune train RECIPE_OR_FILE, also with --resume auto; or --resume RUN",
            )
        from pretune.recipe.recipe import Recipe

        # Or begin, or whichever it is: once, on several parts of the data, or with several seeds.
        _check_folds(folds, group, seeds)
        chosen = Recipe.load(recipe, changes)
        if resume == AUTO:
            _show_result(train_or_resume(chosen, quiet=quiet), as_json=as_json)
            return
        if folds is not None:
            _cross_validate(chosen, folds, group, overwrite=overwrite, quiet=quiet, as_json=as_json)
            return
        if seeds == 1:
            result = train_recipe(chosen, overwrite=overwrite, quiet=quiet)
            _show_result(result, as_json=as_json)
            return
        several = train_seeds(chosen, seeds, overwrite=overwrite, quiet=quiet)
    except Interrupted as stopped:
        from pretune.training.distributed import environment_world

        if not environment_world().main:  # of several processes only the first one says it
            raise Exit(STOPPED_BY + stopped.signal) from None
        # A run by itself is resumed; with several seeds the same command skips those that are done.
        again = resume_command(stopped.folder)
        if "=FILE" in again:
            again += "  (the data came through a pipe, and is gone: save the same to FILE)"
        if seeds > 1 or folds is not None:
            again = "the same command" + (", without --overwrite" if overwrite else "")
        fail(
            f"{stopped}\ngo on:  {again}\nuse it: {_usage(stopped.folder, 'last')}",
            STOPPED_BY + stopped.signal,
        )
    from pretune.experiments.failed_runs import several_to_dict
    from pretune.render.result_views import several_view

    shown = several_view(several)
    print_result(several_to_dict(several), shown, as_json=as_json, saved=True)


def _check_folds(folds: int | None, group: str | None, seeds: int) -> None:
    """Check what --folds excludes, and what needs it."""
    if group is not None and folds is None:
        raise PretuneError("--group is about --folds N, and there is none")
    if folds is not None and seeds > 1:
        raise PretuneError("give --folds or --seeds, not both", "Leave one of them out.")
    if folds is not None and "RANK" in os.environ:
        raise PretuneError("--folds is for one process", "Train without torchrun.")


def _cross_validate(
    recipe: Recipe, folds: int, group: str | None, *, overwrite: bool, quiet: bool, as_json: bool
) -> None:
    """Train and validate on every part, and write the out-of-fold answers and the report."""
    from pretune.experiments.out_of_fold import (
        TABLE,
        folds_to_dict,
        out_of_fold,
        write_out_of_fold,
    )
    from pretune.recipe.schema import FoldSection
    from pretune.render.folds_report import PAGE, write_folds_report
    from pretune.render.result_views import out_of_fold_view, several_view
    from pretune.training.several_runs import train_folds

    several = train_folds(recipe, folds, group=group, overwrite=overwrite, quiet=quiet)
    # Each record is answered by the run that did not learn from it.
    part = FoldSection(number=1, of=folds, group=group)
    with progress_bar("answering", folds, shown=not quiet) as bar:
        answers = out_of_fold(recipe, several, part, progress=bar)
    folder = Path(recipe.output)
    write_out_of_fold(folder, several, answers)
    write_folds_report(folder / PAGE, several, answers)
    print_result(
        folds_to_dict(several, answers),
        several_view(several),
        out_of_fold_view(answers),
        f"every answer: {folder / TABLE}",
        f"look at it:   {folder / PAGE}",
        as_json=as_json,
        saved=True,
    )


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
