"""The errors a person can act on.

Every message says what is wrong, where (file, line, column or key), and the way out. The command
line prints them without a traceback and exits with code 2; anything else that escapes is our bug.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

#: Control characters, which a front end may obey.
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class PretuneError(Exception):
    """Base of all errors caused by what we were given rather than by our own mistake.

    Args:
        message: what is wrong and where.
        hint: the way out, as something to type or change; shown on its own line.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        #: Whether another process of the same run shows it, so that this one need not.
        self.told = False

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of the error: the sentence, and no traceback through our code."""
        shown = _STEERS.sub("\ufffd", str(self))
        return [f"{type(self).__name__}: {shown}"]


class DataError(PretuneError):
    """A data file, a record or a text that cannot be used."""


class RecipeError(PretuneError):
    """A recipe with a wrong key or value."""


class WrongValueError(ValueError):
    """A value of a recipe that a check refuses; the error of the recipe tells it behind the key."""


class CheckpointError(PretuneError):
    """A model or tokenizer folder that is missing, damaged or of an unknown kind."""


class NotFiniteError(CheckpointError):
    """A model whose outputs are no numbers, such as one with weights of a diverged training."""

    def __init__(self) -> None:
        super().__init__(
            "the model computes numbers that are not finite",
            "Its weights are broken: train it again, or copy it again.",
        )


class RunError(PretuneError):
    """A run folder that cannot be used, or a training that cannot go on."""


class RewardError(RunError):
    """A reward that failed on replies; a person may mend it while the run waits."""


class OwnCodeError(RunError):
    """A callback, a metric or a loss of a person's own that failed.

    They may mend it, and a run goes on where it was.
    """


class HubError(PretuneError):
    """The Hugging Face Hub refused, could not be reached, or holds something else there."""


class Note(UserWarning):
    """Something that was guessed or left out, which a person may want to know; see `note`."""


def note(text: str) -> None:
    """Tell a person, once, what was guessed or left out.

    In Python it is a warning of the class `Note`; the command line prints it on standard error.
    """
    warnings.warn(text, Note, stacklevel=3)


def describe_value(value: object) -> str:
    """Phrase for a value of the wrong type, as in "expected ..., found a list"."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "an infinite number"
    return type_name(type(value))


def with_article(word: str) -> str:
    """Return a word after its article, by its first letter: an electra, a bert."""
    return f"{'an' if word[:1].lower() in tuple('aeio') else 'a'} {word}"


def type_name(kind: type) -> str:
    """The name of a type with its article: "a list", "an int"."""
    return f"{'an' if kind.__name__[0] in 'aeiou' else 'a'} {kind.__name__}"


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The choice most similar to `word`, whatever the case; None where none is similar."""
    spelled = {choice.casefold(): choice for choice in choices}
    matches = difflib.get_close_matches(word.casefold(), list(spelled), n=1, cutoff=cutoff)
    return spelled[matches[0]] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence that names the nearest choice, or lists all of them."""
    choices = list(choices)
    best = nearest(word, choices)
    if best is not None:
        return f"Did you mean '{best}'?"
    return "Known here: " + ", ".join(choices) + "."


def not_writable(path: object, option: str, error: OSError) -> RunError:
    """The error for a file or folder that cannot be written, named by an option like `--output`."""
    return RunError(
        f"{path}: cannot be written ({error.strerror or error})", f"Choose another {option}."
    )


def similar_file(path: str | Path) -> str:
    """What to add to "no such file.": the most similar name in its folder, with a space before.

    Empty where there is no folder, or too many files to list them.
    """
    path = Path(path)
    # os.path.isdir and not Path.is_dir, which raises where a name is too long.
    names = [p.name for p in path.parent.glob("*")] if os.path.isdir(path.parent) else []
    return f" {did_you_mean(path.name, names)}" if 0 < len(names) < 50 else ""
