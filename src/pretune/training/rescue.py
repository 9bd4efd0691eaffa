"""What happens when the guard finds an update not fit to be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from pretune.data.arrays import Array
from pretune.data.batch_order import Cursor
from pretune.errors import RunError
from pretune.inference.runtime import precision_context
from pretune.tasks.base import drawn
from pretune.training.diagnose import first_bad_module, some
from pretune.training.guard import Trouble
from pretune.training.jobs import Job

if TYPE_CHECKING:
    from pretune.training.loop import Trainer

#: So many examples of a batch are looked at one by one.
MOST_EXAMPLES = 1024


def rescue(trainer: Trainer, job: Job, trouble: Trouble) -> bool:
    """Deal with trouble as the recipe says; the update was not made.

    Returns:
        whether an epoch ends with the data that is passed over, and so without an update.

    Raises:
        RunError: the recipe says stop, or this has happened too often.
    """
    guard, step = trainer.options.guard, trainer.course.steps
    what = f"{trouble.what} in update {step + 1} of {trainer.total}"
    found = explain(trainer, job, trouble)
    rate = f"Lower train.learning_rate (now {trainer.options.learning_rate:g})"
    if not trainer.options.clip:
        rate += ", set train.clip=1.0"
    rescues = trainer.course.rescues
    if guard.action == "stop":
        raise RunError(
            f"{what}; the update was not applied\n  {found}",
            f"{rate}, look at these records, or go on without them: train.guard=skip or "
            "train.guard=rollback.",
        )
    if len(rescues) >= guard.give_up:
        earlier = "".join(f"\n  - {text}" for text in rescues)
        raise RunError(
            f"{what}, after {len(rescues)} rescues: given up\n  {found}\n  earlier:{earlier}",
            f"{rate}, look at the records named here, or allow more: train.guard.give_up.",
        )
    if guard.action == "rollback":
        at, done = _roll_back(trainer, job)
    else:
        at, done = job.at, "this batch was passed over"
        trainer.cursor, trainer.guard.streak = job.after, 0
    trainer.course.rescues = [*rescues, f"{what}: {done}; {found}"]
    trainer.reporter.say(f"guard: {trainer.course.rescues[-1]}")
    return trainer.cursor.epoch > at.epoch


def explain(trainer: Trainer, job: Job, trouble: Trouble) -> str:
    """Where it came from: the module, if something is not finite, and the records.

    Leaves no gradients, and torch's generator where it is.
    """
    optimizer = trainer.optimizer
    optimizer.forget()
    generator = torch.get_rng_state()
    found = []
    try:
        if not trouble.finite:
            torch.set_rng_state(job.generator)  # the same dropout
            module = first_bad_module(trainer.model, lambda: trainer.gradients(job))
            found.append(module or "no module gives it when the batch is computed once more")
        found.append(_records(trainer, job, finite=trouble.finite))
    finally:
        torch.set_rng_state(generator)
        optimizer.forget()
    return "; ".join(found)


def _records(trainer: Trainer, job: Job, *, finite: bool) -> str:
    """Those whose loss is not finite; or those with the highest; or all."""
    features = job.share.whole[:MOST_EXAMPLES]
    rows = np.array([trainer.train.record(int(feature)) for feature in features])
    losses = _losses(trainer, features, job.at.epoch)
    if finite:
        worst = np.argsort(-losses)[:3]
        named = [f"{trainer.name_record(int(rows[i]))} ({losses[i]:.4g})" for i in worst]
        return "the highest losses in its batch: " + some(named)
    bad = rows[~np.isfinite(losses)]
    guilty = "these records give it by themselves" if 0 < len(bad) < len(rows) else "its batch"
    chosen = bad if 0 < len(bad) < len(rows) else rows
    return f"{guilty}: " + some([trainer.name_record(int(row)) for row in np.unique(chosen)])


@torch.no_grad()
def _losses(trainer: Trainer, features: Array, epoch: int) -> Array:
    """`[B]`: the mean loss of each feature by itself, without dropout."""
    modes = [(module, module.training) for module in trainer.model.modules()]
    trainer.model.eval()
    found = []
    try:
        for feature in features:
            batch = trainer.train.batch(np.array([feature]))
            batch = drawn(trainer.task, batch, seed=trainer.seed, epoch=epoch).to(trainer.device)
            with precision_context(trainer.device, trainer.options.precision):
                loss = trainer.task.loss(trainer.task.forward(trainer.model, batch), batch)
            found.append(float(loss.sum) / max(loss.count, 1))
    finally:
        for module, training in modes:
            module.training = training
    return np.array(found, dtype=np.float64)


def _roll_back(trainer: Trainer, job: Job) -> tuple[Cursor, str]:
    """Back to a checkpoint from before the trouble, and past its data; where that was, in words."""
    since, skips = trainer.begun[0], trainer.skips
    before = trainer.course.steps - len(trainer.begun) + 1
    failed = trainer.course.steps
    saved = trainer.keeper.newest(before)
    if saved is None:
        raise RunError(
            "train.guard: there is no whole checkpoint to go back to",
            "Were files of the run removed while it ran? train.guard=skip needs none.",
        )
    trainer.restore(saved)
    trainer.reporter.rewind(trainer.course.steps)
    at = trainer.cursor
    since = max(since, at)
    trainer.skips = {**skips, since: job.after}
    trainer.cursor = trainer.past(at)
    trainer.guard.streak = 0
    back = trainer.course.steps
    return at, (
        f"back to update {back} ({failed - back} undone), and past the data from epoch "
        f"{since.epoch}, example {since.offset}, to epoch {job.after.epoch}, example "
        f"{job.after.offset}"
    )
