"""From a recipe to a finished run folder."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pretune import __version__
from pretune.data import MAX_CHARS, FeatureSet, Records, epoch_order, read
from pretune.errors import DataError
from pretune.models import ops
from pretune.recipe import Recipe
from pretune.tasks import AnyTask, featurize, task_class
from pretune.tasks.bundle import Bundle, grow_vocabulary, load, save
from pretune.training.evaluate import choose_device
from pretune.training.folder import EVENTS, METRICS, RunFolder
from pretune.training.freeze import freeze
from pretune.training.log import JsonLines, Reporter, TensorBoard
from pretune.training.loop import Course, Stopped, Trainer, seed_everything
from pretune.training.stop import StopRequest


@dataclass(frozen=True)
class RunResult:
    """The outcome of a training.

    Attributes:
        folder: where everything is.
        seed: of the run.
        metrics: of the best model on the validation data; empty without such data.
        details: more of that evaluation, e.g. the confusion matrix.
        best_step: after how many updates it was best.
        steps: updates done.
        examples: sequences trained on, over all epochs.
        tokens: the same in tokens.
        seconds: spent in training steps.
        peak_memory_mb: the most memory the process (on CUDA: the device) held, in MiB.
        environment: versions and machine.
    """

    folder: str
    seed: int
    metrics: dict[str, float]
    details: dict[str, Any]
    best_step: int | None
    steps: int
    examples: int
    tokens: int
    seconds: float
    peak_memory_mb: float
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def examples_per_second(self) -> float:
        """Sequences trained on in a second."""
        return self.examples / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class SeedsResult:
    """The outcomes of one recipe under several seeds."""

    runs: tuple[RunResult, ...]

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and sample standard deviation of each metric."""
        found = {}
        for name in self.runs[0].metrics:
            values = [run.metrics[name] for run in self.runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found[name] = (statistics.mean(values), spread)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        summary = {name: {"mean": mean, "sd": sd} for name, (mean, sd) in self.summary().items()}
        return {"summary": summary, "runs": [run.to_dict() for run in self.runs]}


class Interrupted(Exception):  # noqa: N818 - not an error
    """The training was stopped from outside; its last model is saved.

    Attributes:
        folder: the run.
        steps: updates done.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__(f"stopped after {steps} updates; the last checkpoint is {folder / 'last'}")
        self.folder, self.steps = folder, steps


def train_recipe(recipe: Recipe, *, overwrite: bool = False, quiet: bool = False) -> RunResult:
    """Train as a recipe says, into its output folder.

    Args:
        recipe: what to do.
        overwrite: delete an earlier run in the output folder.
        quiet: show no progress.

    Raises:
        PretuneError: bad data, model, recipe or folder; says what to do.
        Interrupted: SIGINT or SIGTERM came; the last model is saved.
    """
    folder = RunFolder(recipe.output)
    folder.check(recipe, overwrite=overwrite)
    device = choose_device(recipe.train.device)
    records, held_out = read_data(recipe)
    task = task_class(recipe.task.name)(recipe.task)
    task.fit(records)
    seed_everything(recipe.seed)
    bundle = load(
        recipe.model.source,
        task=task,
        tokenizer=recipe.model.tokenizer,
        dropout=recipe.model.dropout,
        attention_dropout=recipe.model.attention_dropout,
        mmap=False,  # every weight is about to be written to
        allow_pickle=recipe.model.allow_pickle,
    )
    bundle.columns = dict(recipe.data.columns)
    grow_vocabulary(bundle, recipe.model.new_tokens, recipe.model.vocab_multiple)
    freeze(bundle.model, recipe.train.freeze)
    with Reporter(quiet=quiet) as reporter:
        # All data is checked before the folder is touched.
        train = _features("train", task, records, bundle, reporter)
        validation = None
        if held_out is not None:
            validation = _features("validation", task, held_out, bundle, reporter)
        folder.create(recipe)
        reporter.say(str(bundle.report))
        bundle.model.to(device)
        sinks = (JsonLines(folder.path / METRICS), TensorBoard(folder.path / EVENTS))
        reporter.add(*sinks)
        with StopRequest(reporter.say) as stop:
            trainer = Trainer(
                task,
                bundle.model,
                train,
                validation,
                options=recipe.train,
                seed=recipe.seed,
                device=device,
                reporter=reporter,
                save=lambda step, best: _save(folder, bundle, step, best=best),
                should_stop=stop,
            )
            reporter.say(_plan(trainer, device))
            try:
                course = trainer.fit()
            except Stopped as stopped:
                raise Interrupted(folder.path, stopped.step) from None
        result = _result(recipe, course, device)
        folder.finish(result.to_dict())
    return result


def train_seeds(
    recipe: Recipe, count: int, *, overwrite: bool = False, quiet: bool = False
) -> SeedsResult:
    """Train `count` times, with the seeds from `recipe.seed` on, into `output/seed-S`."""
    runs = []
    for seed in range(recipe.seed, recipe.seed + count):
        output = str(Path(recipe.output) / f"seed-{seed}")
        one = recipe.model_copy(update={"seed": seed, "output": output})
        runs.append(train_recipe(one, overwrite=overwrite, quiet=quiet))
    return SeedsResult(tuple(runs))


def read_data(recipe: Recipe) -> tuple[Records, Records | None]:
    """The training and the validation records, with the columns the task knows.

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    data = recipe.data
    records = _read(recipe, data.train)
    if isinstance(data.validation, str):
        return records.head(data.limit), _read(recipe, data.validation)
    if data.validation is None:
        return records.head(data.limit), None
    # The same split whatever the seed of the run, so that runs can be compared.
    order = epoch_order(len(records), seed=0, epoch=0).tolist()
    count = round(data.validation * len(records))
    if not 0 < count < len(records):
        raise DataError(
            f"{records.origin}: {len(records)} records are too few to hold back "
            f"{data.validation:g} of them",
            "Give validation data with data.validation=FILE, or none: data.validation=null.",
        )
    return records.take(sorted(order[count:])).head(data.limit), records.take(sorted(order[:count]))


def _read(recipe: Recipe, source: str) -> Records:
    data = recipe.data
    task = task_class(recipe.task.name)(recipe.task)
    return read_for(
        task,
        source,
        columns=data.columns,
        encoding=data.encoding,
        quoting=data.quoting,
        max_chars=data.max_chars,
    )


def read_for(
    task: AnyTask,
    source: str | Path,
    *,
    columns: Mapping[str, str],
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int = MAX_CHARS,
    with_targets: bool = True,
) -> Records:
    """Read data for a task: its columns under the names the task knows.

    Raises:
        DataError: missing, broken, or without a column that the task needs.
    """
    needed = [*task.inputs, *(task.targets if with_targets else ())]
    records = read(source, encoding=encoding, quoting=quoting, max_chars=max_chars)
    return records.mapped(columns, needed)


def _features(
    what: str, task: AnyTask, records: Records, bundle: Bundle, reporter: Reporter
) -> FeatureSet:
    with reporter.working(f"reading {what}", len(records)) as done:
        features = featurize(task, records, bundle.tokenizer, progress=done)
    cut = ""
    if features.truncated:
        most = task.options.max_length
        cut = f"; {features.truncated:,} were longer than {most} tokens and were cut"
    reporter.say(
        f"{what}: {len(features):,} from {records.origin}, {int(features.starts[-1]):,} tokens{cut}"
    )
    return features


def _save(folder: RunFolder, bundle: Bundle, step: int, *, best: bool) -> None:
    folder.checkpoint(step, lambda path: save(bundle, path), best=best)


def _plan(trainer: Trainer, device: torch.device) -> str:
    everything = sum(p.numel() for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    share = "" if trained == everything else f" of {everything:,} ({trained / everything:.1%})"
    return (
        f"training {trained:,}{share} parameters on {device} for {trainer.total:,} updates "
        f"({trainer.warmup:,} of them warming up)"
    )


def _result(recipe: Recipe, course: Course, device: torch.device) -> RunResult:
    best = course.best
    return RunResult(
        folder=recipe.output,
        seed=recipe.seed,
        metrics={} if best is None else best.metrics,
        details={} if best is None else best.details,
        best_step=course.best_step,
        steps=course.steps,
        examples=course.examples,
        tokens=course.tokens,
        seconds=course.seconds,
        peak_memory_mb=peak_memory_mb(device),
        environment=environment(device),
    )


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far, in MiB: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held when it forked
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides the recipe."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "pretune": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{device} ({name})",
        "threads": str(torch.get_num_threads()),
        "matmul": "oneDNN" if device.type == "cpu" and ops.uses_onednn() else "PyTorch",
    }


__all__: Sequence[str] = [
    "Interrupted",
    "RunResult",
    "SeedsResult",
    "environment",
    "peak_memory_mb",
    "read_data",
    "read_for",
    "train_recipe",
    "train_seeds",
]
