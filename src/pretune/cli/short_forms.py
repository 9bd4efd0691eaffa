"""Options that stand for keys of a recipe: `--epochs 3` is `train.epochs=3`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperCommand
from typing_extensions import override

from pretune.errors import PretuneError

#: The options, and the keys they stand for. A command's own option of that name comes first.
SHORT_FORMS = {
    "--model": "model.from",
    "--epochs": "train.epochs",
    "--lr": "train.learning_rate",
    "--batch-size": "train.batch_size",
    "--max-length": "task.max_length",
    "--seed": "seed",
    "--output": "output",
    "-o": "output",
}
#: How the help page of a command tells of them.
TOLD = "Short forms: " + ", ".join(
    f"{option} X for {key}=X" for option, key in SHORT_FORMS.items() if option != "-o"
)


class RecipeCommand(TyperCommand):
    """A command that takes a recipe and KEY=VALUE overrides, some of which have a short form."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {option for parameter in self.params for option in parameter.opts}
        own |= {"-h", "--help"}
        rest, overrides = expanded(args, own)
        try:
            # At the end, as the first argument is the recipe.
            return super().parse_args(ctx, [*rest, *overrides])
        except typer.TyperException as error:
            option = getattr(error, "option_name", None)
            if option is None or option in own:
                raise
            raise _no_such_option(option, error) from None


def expanded(args: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """Separate short forms from other arguments, and return those, then the overrides they mean.

    Args:
        args: of the command line.
        own: the command's own options, which are left as they are.

    Raises:
        PretuneError: a short form without a value.
    """
    rest: list[str] = []
    overrides: list[str] = []
    words: Iterator[str] = iter(args)
    for word in words:
        if word == "--":  # what follows is no option
            rest += [word, *words]
            break
        option, equals, value = word.partition("=")
        if option not in SHORT_FORMS or option in own:
            rest.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None:
            key = SHORT_FORMS[option]
            raise PretuneError(f"{option}: its value is missing", f"{option} X stands for {key}=X.")
        overrides.append(f"{SHORT_FORMS[option]}={given}")
    return rest, overrides


def _no_such_option(option: str, error: typer.TyperException) -> Exception:
    """The error for an option that does not exist, with the key that it may mean."""
    from pretune.recipe.mistakes import key_called
    from pretune.recipe.recipe import Recipe

    key = key_called(option.lstrip("-").replace("-", "_"), Recipe)
    if key is None:
        return error
    return PretuneError(
        f"{option}: no such option", f"It may be a key of the recipe: write {key}=VALUE instead."
    )
