"""Callbacks: code of a person's own that a training calls between its updates.

    class Patience(Callback):
        def on_evaluation(self, moment: Moment) -> None:
            if moment.figures["accuracy"] > 0.99:
                moment.stop("good enough")

    pretune.train("train.tsv", callbacks=[Patience()])

A callback looks, and may ask for an end; it changes nothing. The model is in evaluation mode and
without gradients while it is called, and the random generators are put back afterwards: a run with
callbacks gives the same weights as the run without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from pretune.errors import OwnCodeError, RecipeError, type_name
from pretune.inference.runtime import evaluation_mode
from pretune.registry import Registry
from pretune.tasks.base import AnyTask
from pretune.text.foreign_errors import described_error
from pretune.training.state import generators, restore_generators

#: What a callback can be called at, in the order in which it happens around an update.
Event = Literal["step", "evaluation", "checkpoint", "end"]
EVENTS: tuple[Event, ...] = ("step", "evaluation", "checkpoint", "end")


@dataclass(frozen=True)
class Moment:
    """What a callback is told of a training.

    Attributes:
        step: updates done.
        total: updates of the whole run.
        epoch: passes over the data done, with fractions.
        figures: of a step `loss` (the mean over its batch), `learning_rate` and `gradient_norm`;
            of an evaluation its metrics; of a checkpoint none; at the end the best model's metrics.
        best: whether the model that was evaluated or saved is the best so far.
        model: with its head. With `train.ema` it has the averaged weights, but in `on_step`.
        task: what it is trained for.
        folder: of the run; None where nothing is written. A checkpoint is `folder / "last"`.
    """

    step: int
    total: int
    epoch: float
    figures: Mapping[str, float]
    best: bool
    model: nn.Module
    task: AnyTask
    folder: Path | None
    _reasons: list[str] = field(default_factory=list, repr=False)

    def stop(self, why: str) -> None:
        """Ask for the end of the training: the model is evaluated and saved, and the run finishes.

        Args:
            why: a few words for people.
        """
        self._reasons.append(why)


class Callback(Protocol):
    """The calls that a training makes; a class need not have all of them.

    Callbacks are called in their order, each before the next; where one raises, the run ends with
    its state saved. In a group of processes the first one alone calls them.
    """

    def on_step(self, moment: Moment) -> None:
        """Look at the training after an update, before what is due is evaluated and saved."""
        del moment  # not abstract: a class says only what it wants

    def on_evaluation(self, moment: Moment) -> None:
        """Look at the figures of an evaluation on the validation data."""
        del moment

    def on_checkpoint(self, moment: Moment) -> None:
        """Use a checkpoint, which is complete on the disk."""
        del moment

    def on_end(self, moment: Moment) -> None:
        """Look at the outcome once the last checkpoint is written.

        Not called where a signal or an error ends the run: resumed, it has its end later.
        """
        del moment


#: Callbacks that a recipe names in `train.callbacks`: objects, or classes to make one of.
CALLBACKS: Registry[Any] = Registry("pretune.callbacks", "callback", {})


def named_callbacks(names: Sequence[str]) -> list[Callback]:
    """Make the callbacks that a recipe names.

    Raises:
        RecipeError: there is none of that name, or its class cannot be called without arguments.
    """
    made = []
    for name in names:
        thing = CALLBACKS.find(name, error=RecipeError)
        try:
            made.append(thing() if isinstance(thing, type) else thing)
        except Exception as error:
            raise RecipeError(
                f"train.callbacks: {name} cannot be made: {described_error(error)}",
                "Its class is called without arguments; register an object instead.",
            ) from error
    return made


def given_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """The callbacks that somebody gives to a training.

    Raises:
        OwnCodeError: it is one callback, not several.
    """
    if not isinstance(callbacks, Iterable):
        raise OwnCodeError(
            f"callbacks: expected a list of objects, found {type_name(type(callbacks))}",
            "Give it in a list: callbacks=[...].",
        )
    return [*callbacks]


class Callbacks:
    """Some callbacks, called one after the other.

    Args:
        callbacks: each has at least one of the methods of `Callback`.
        folder: of the run.

    Raises:
        OwnCodeError: one has none of them.
    """

    def __init__(self, callbacks: Sequence[Callback] = (), folder: Path | None = None) -> None:
        self.folder = folder
        self._callbacks = tuple(callbacks)
        methods = [f"on_{event}" for event in EVENTS]
        for callback in callbacks:
            if isinstance(callback, type) or not any(hasattr(callback, name) for name in methods):
                kind = "a class" if isinstance(callback, type) else type_name(type(callback))
                raise OwnCodeError(
                    f"callbacks: expected an object with {' or '.join(methods)}, found {kind}",
                    "Make a class with one of these methods, and give an object of it.",
                )

    def listen(self, event: Event) -> bool:
        """Whether any of them wants to know of an event."""
        return any(hasattr(callback, f"on_{event}") for callback in self._callbacks)

    def tell(self, event: Event, make: Callable[[list[str]], Moment]) -> str | None:
        """Call them, and return why one of them asks for an end; None where none does.

        Args:
            event: what happened.
            make: takes a list for the reasons to stop, and returns what callbacks are told.

        Raises:
            OwnCodeError: one raised an error; names it.
        """
        before = generators()
        moment = make([])
        try:
            for callback in self._callbacks:
                with evaluation_mode(moment.model), torch.no_grad():
                    self._call(callback, event, moment)
        finally:
            restore_generators(before)
        return moment._reasons[0] if moment._reasons else None

    @staticmethod
    def _call(callback: Callback, event: Event, moment: Moment) -> None:
        method = getattr(callback, f"on_{event}", None)
        if method is None:
            return
        try:
            method(moment)
        except (Exception, SystemExit) as error:
            raise OwnCodeError(
                f"the callback {type(callback).__name__} failed in on_{event}, after update "
                f"{moment.step}: {described_error(error)}",
                "The state of the run is saved: mend the callback, or leave it out.",
            ) from error
