"""What the benches of training share: when updates ended; transformers' Trainer told to tick."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Updates before the clock starts: first touches of memory, kernels compiled for new shapes.
WARM_UP = 4
#: Settings of every trainer of the peers: it trains on the CPU, and neither saves nor reports.
QUIET: dict[str, Any] = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}


class Clock:
    """Notes when each update ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> bool:
        """An update has ended; False: go on."""
        self.times.append(time.perf_counter())
        return False

    def rate(self, steps: int, units: float) -> float:
        """Units a second after the warm-up, if each of the `steps` updates after it has `units`."""
        return units * steps / (self.times[WARM_UP + steps - 1] - self.times[WARM_UP - 1])


def prepared(recipe: Any) -> tuple[Any, Any, Any]:
    """Task, bundle and training features of a recipe."""
    from pretune.tasks.builtin import task_class
    from pretune.tasks.features import featurize
    from pretune.training.data import fit, read_data
    from pretune.training.run import starting_model
    from pretune.training.state import seed_everything

    records, _ = read_data(recipe)
    task = task_class(recipe.task.name)(recipe.task)
    fit(task, records)
    seed_everything(0)
    bundle = starting_model(recipe, task, records)
    return task, bundle, featurize(task, records, bundle.tokenizer)


def run_ours(recipe: Any, steps: int, *, tokens: bool) -> Callable[[], float]:
    """Prepare our trainer; what is returned trains and gives examples, or tokens, a second."""
    from pretune.training.loop import Trainer

    task, bundle, features = prepared(recipe)
    units = recipe.train.batch_size * (float(features.lengths.mean()) if tokens else 1)

    def run() -> float:
        clock = Clock()
        trainer = Trainer(
            task, bundle.model, features, options=recipe.train, should_stop=clock.tick
        )
        trainer.fit()
        return clock.rate(steps, units)

    return run


def arguments(batch_size: int, steps: int, **more: Any) -> Any:
    """`TrainingArguments` for the training alone: `steps` updates after the warm-up."""
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="peer-"),
        per_device_train_batch_size=batch_size,
        max_steps=WARM_UP + steps,
        max_grad_norm=1.0,
        **QUIET,
        **more,
    )


def run_trainer(trainer: Any, steps: int, units: float) -> float:
    """Train with a transformers `Trainer`; units a second."""
    from transformers import PrinterCallback, TrainerCallback

    clock = Clock()

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            clock.tick()

    ticks = Ticks()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ticks)
    trainer.train()
    trainer.remove_callback(ticks)
    return clock.rate(steps, units)


def in_turns(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each run gives in each round; the order alternates."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in runs if number % 2 == 0 else reversed(list(runs)):
            found[name].append(runs[name]())
    return found


def settle(answers: Callable[[Sequence[Any]], object], texts: Sequence[Any]) -> None:
    """Wait until the threads of the previous engine sleep, then let this one meet each text.

    onnxruntime's threads keep polling for work, and for a while take a core from whoever comes
    next: four times the milliseconds of one text were seen.
    """
    time.sleep(0.1)
    for text in texts:
        answers([text])


def peak_of(script: str, *options: str) -> float:
    """The peak resident memory, in MiB, of a script whose last line is JSON with `peak_mib`."""
    command = [sys.executable, script, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


def say_peak() -> None:
    """What `peak_of` reads."""
    import torch

    from pretune.training.run_result import peak_memory_mb

    print(json.dumps({"peak_mib": peak_memory_mb(torch.device("cpu"))}))
