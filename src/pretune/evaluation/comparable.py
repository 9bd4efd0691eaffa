"""Which figures of models that answered the same examples can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pretune.errors import RunError
from pretune.evaluation.examine import Examined


def same_terms(examined: Sequence[Examined]) -> bool:
    """Whether the loss of each example is of as many terms in all models."""
    terms = [[e.terms for e in x.examples] for x in examined]
    return all(other == terms[0] for other in terms[1:])


def comparable_figures(
    names: Sequence[str], examined: Sequence[Examined]
) -> tuple[list[dict[str, float]], tuple[str, ...]]:
    """The figures of each that can be compared, and the names of those that cannot.

    A loss of a token is of other tokens where the same text is cut into more of them.

    Raises:
        RunError: none are left.
    """
    figures = [_figures(x) for x in examined]
    if same_terms(examined):
        return figures, ()
    of_losses = set().union(*map(_of_losses, examined))
    left_out = tuple(name for name in figures[0] if name in of_losses)
    figures = [{n: v for n, v in own.items() if n not in of_losses} for own in figures]
    if not figures[0]:
        raise RunError(
            f"{' and '.join(names)} cut the same examples into different numbers of tokens, and "
            f"their figures ({', '.join(left_out)}) are all a token",
            "Compare models with the same tokenizer and task.max_length.",
        )
    return figures, left_out


def _of_losses(examined: Examined) -> set[str]:
    """The figures that another loss would change."""
    sums = np.repeat(examined.sums.sum(0)[None], 2, axis=0)
    sums[:, 0] = sums[:, 1] * (1, 2)
    return {name for name, x in examined.task.figures(sums).items() if x[0] != x[1]}


def _figures(examined: Examined) -> dict[str, float]:
    """The figures that follow from sums over examples and are those that `evaluate` gives.

    The loss of masked tokens and next sentences is not: it is the sum of two means.
    """
    found = {name: float(x) for name, x in examined.task.figures(examined.sums.sum(0)).items()}
    known = examined.metrics
    return {n: x for n, x in found.items() if np.isclose(x, known[n], rtol=1e-3, atol=1e-6)}
