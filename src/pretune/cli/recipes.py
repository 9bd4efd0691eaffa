"""`pretune init`, `recipes`, `plan` and `plot-schedule`: a recipe before it is trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_live, print_result, to_stdout
from pretune.errors import PretuneError, RecipeError, did_you_mean
from pretune.text.spoken_language import ENGLISH, language, speaking, tr


@command("init", "pretune init classify > my-recipe.yaml")
def init(
    task: Annotated[str, Argument(help="The task, e.g. classify.")],
    output: Annotated[
        Path | None, Option("--output", "-o", help="Write to this file instead of the terminal.")
    ] = None,
) -> None:
    """Write a recipe to start from, with every key, its meaning and its default."""
    from pretune.checkpoints.atomic_io import atomic_text
    from pretune.recipe import yaml12
    from pretune.recipe.commented import commented_recipe
    from pretune.recipe.recipe import builtin_recipes

    # The recipe of that name, where there is one: its model and its data fit the task.
    given = yaml12.parse(builtin_recipes().get(task, "{}"), task)
    # A recipe is read as UTF-8; what a shell writes to a file in another encoding has to be ASCII.
    foreign = output is None and not to_stdout().encoding.lower().startswith("utf")
    with speaking(ENGLISH if foreign else language()):
        text = commented_recipe(task, given)
    if output is None:
        print_live(text)
        return
    if os.path.exists(output):  # unlike Path.exists, False for a name that no file can have
        raise RecipeError(f"{output}: exists already", "Choose another name, or remove it first.")
    try:
        atomic_text(output, text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise RecipeError(f"{output}: cannot be written ({reason})") from None
    last = f"wrote {output}; run it with: pretune train {output}"
    print_result({}, last, as_json=False, saved=True)


@command("recipes", "pretune recipes", "pretune recipes mrpc > my-recipe.yaml")
def recipes(name: Annotated[str | None, Argument(help="The recipe to print.")] = None) -> None:
    """List the recipes that have a name, built-in or installed, or print one."""
    from rich.table import Table

    from pretune.recipe.recipe import Recipe, named_recipes

    known = named_recipes()
    if name is not None:
        if name not in known:
            raise RecipeError(f"no recipe is called '{name}'", did_you_mean(name, known))
        print_live(known[name])
        return
    table = Table(tr("recipe"), tr("what it does"), pad_edge=False)
    for key in known:
        table.add_row(key, tr(Recipe.load(key).description))
    to_stdout().print(table)


@command(
    "plan",
    "pretune plan tickets.tsv",
    "pretune plan mrpc model.from=minilm train.epochs=5 --json",
    "pretune plan gpt2-pretrain --gpu h100 --gpus 8 --nodes 2 --price 2.5",
    recipe=True,
)
def plan(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    measure: Annotated[
        bool, Option(help="Time a few updates on a copy of the model to estimate the hours.")
    ] = True,
    gpu: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Plan for this GPU, on paper: a100-40, a100-80, h100, h200, l4, l40s, 4090, ...",
        ),
    ] = None,
    gpus: Annotated[int, Option(min=1, help="GPUs in each machine.")] = 1,
    nodes: Annotated[int, Option(min=1, help="Machines.")] = 1,
    price: Annotated[
        float | None, Option(help="Price of one GPU for an hour, to show what the run costs.")
    ] = None,
    mfu: Annotated[
        float | None,
        Option(help="Share of the GPU's peak that the model reaches. Default: 0.4, an assumption."),
    ] = None,
    measured: Annotated[
        str | None,
        Option(metavar="RUN", help="Take that share from this finished run on GPUs."),
    ] = None,
    tokens: Annotated[
        float | None,
        Option(help="Plan for so many tokens, e.g. 300e9. Default: as the recipe says."),
    ] = None,
    device_file: Annotated[
        Path | None,
        Option(help="A YAML file with other GPUs, in the form of gpus.yaml (see the docs)."),
    ] = None,
    spec: Annotated[
        list[str] | None,
        Option(metavar="KEY=VALUE", help="Change a figure of the GPU, e.g. --spec network=12.5."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Estimate what a training run takes: data, updates, FLOPs, memory, disk, hours.

    Nothing is written. Data and model are read, so a planned run will find both. With --gpu,
    the estimate is for other machines: none of them is needed, and nothing is timed here.
    """
    from pretune.experiments.cluster import ClusterOptions
    from pretune.experiments.plan import plan_run
    from pretune.recipe.recipe import Recipe
    from pretune.render.experiment_views import plan_view

    machines = None
    if gpu is not None or device_file is not None:
        shape = (gpu, gpus, nodes, price, mfu, measured, tokens, device_file, tuple(spec or ()))
        machines = ClusterOptions(*shape)
    elif (gpus, nodes) != (1, 1) or any((price, mfu, measured, tokens, spec)):
        raise PretuneError("what is planned for other machines needs --gpu", "As in --gpu h100.")
    chosen = Recipe.load(recipe, overrides or [])
    planned = plan_run(chosen, measure=measure and machines is None, cluster=machines)
    print_result(planned.to_dict(), plan_view(planned), as_json=as_json)


@command(
    "plot-schedule",
    "pretune plot-schedule mrpc --updates 345",
    "pretune plot-schedule my-recipe.yaml train.schedule=wsd train.warmup=0.01 --png schedule.png",
    recipe=True,
)
def plot_schedule(
    recipe: options.Recipe,
    overrides: options.Overrides = None,
    updates: Annotated[
        int | None,
        Option(
            min=1,
            help="Number of updates of the run. Default: train.max_steps, or counted in the "
            "training data.",
        ),
    ] = None,
    png: Annotated[Path | None, Option(help="Write the plot to this file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Plot the learning rate and the batch size of a run before it starts."""
    from pretune.experiments.schedule_plan import SchedulePlan
    from pretune.recipe.recipe import Recipe
    from pretune.render.schedule_chart import draw_schedule, schedule_view

    chosen = Recipe.load(recipe, overrides or [])
    if updates is not None:
        chosen = chosen.changed({"train.max_steps": updates})
    # Counting the updates in the data is the slow way; with --updates no data are needed.
    plan = SchedulePlan.of(chosen)
    if png is not None:
        draw_schedule(plan, png)
    view = schedule_view(plan, unicode=to_stdout().encoding.lower().startswith("utf"))
    written = [] if png is None else [f"wrote {png}"]
    print_result(plan.to_dict(), view, *written, as_json=as_json)
