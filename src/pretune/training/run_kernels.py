"""The kernels that a run chose for its products, in its folder: a resumed run keeps to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import nn

from pretune.checkpoints.atomic_io import atomic_text
from pretune.models import kernels
from pretune.training.distributed import World

KERNELS_FILE = "kernels.json"


def chosen_kernels(
    folder: Path, model: nn.Module, world: World, *, resumed: bool, say: Callable[[str], None]
) -> kernels.Choice:
    """The kernels of a run on the CPU: those it began with, else measured for its model.

    The main process chooses for all.
    """
    mine = None
    if world.main:
        mine = _earlier(folder, say) if resumed else None
        mine = mine or kernels.prepare(model)
    first = world.gather(mine)[0]
    assert first is not None  # noqa: S101 - for the type checker: the main process comes first
    return first


def keep_kernels(folder: Path, choice: kernels.Choice) -> None:
    """Write the choice into the folder of a run."""
    atomic_text(folder / KERNELS_FILE, json.dumps(choice.to_dict(), indent=1) + "\n")


def _earlier(folder: Path, say: Callable[[str], None]) -> kernels.Choice | None:
    """What the run began with; None where it was not written down, or no longer applies."""
    try:
        text = (folder / KERNELS_FILE).read_text(encoding="utf-8")
        choice = kernels.Choice.from_dict(json.loads(text))
    except FileNotFoundError:  # begun by an earlier version
        return None
    except (OSError, ValueError) as error:
        say(f"{folder / KERNELS_FILE}: cannot be read ({error}); kernels are chosen again")
        return None
    # What the environment forces holds, and a kernel that is not here cannot be used.
    now = kernels.mode()
    if now != choice.mode and now in kernels.FORCED:
        asked = kernels.Choice(now).summary()
        say(
            f"the run began with products by {choice.summary()}; PRETUNE_MATMUL asks for {asked}: "
            "the last bits will differ"
        )
        return None
    if choice.machine != kernels.machine():
        say(
            "the kernels were chosen on another machine or version of torch, and are kept; the "
            "last bits may differ all the same"
        )
    return choice
