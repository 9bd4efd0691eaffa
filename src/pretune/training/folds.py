"""Which records are validated on in cross-validation: stratified, and whole groups.

Every record is in one fold. Which one is a function of the data alone, not of the run's seed: runs
on the same data compare, and a run that is resumed has the same fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from pretune.data.arrays import Array
from pretune.data.batch_order import epoch_order


def fold_numbers(
    count: int,
    folds: int,
    labels: Sequence[Collection[str]] | None = None,
    groups: Array | None = None,
) -> Array:
    """Deal records out to folds.

    Without groups, the numbers of records of two folds differ by at most one, and so do those of
    their records with any label: the records, in a random order within each label, are dealt out
    like cards. Groups are dealt whole, the largest first, each to the fold where the shares of the
    labels then differ least between folds, and of equal ones to the smallest (the greedy rule of
    scikit-learn's `StratifiedGroupKFold`).

    Args:
        count: of the records.
        folds: how many to make, at most as many as there are records or groups.
        labels: those of each record; one with several counts for the rarest. None: no labels.
        groups: `[N]` the group of each record, numbered from 0; None: each is by itself.

    Returns:
        `[N]` int64: the fold of each record, from 0.
    """
    rarest = np.zeros(count, dtype=np.int64) if labels is None else _rarest(labels)
    order = epoch_order(count, seed=0, epoch=0)
    if groups is None:
        # Stable: records of a label stay in their random order, and labels follow one another.
        dealt = order[np.argsort(rarest[order], kind="stable")]
        numbers = np.empty(count, dtype=np.int64)
        numbers[dealt] = np.arange(count) % folds
        return numbers
    return _whole_groups(rarest, groups, folds)[groups]


def _rarest(labels: Sequence[Collection[str]]) -> Array:
    """Return `[N]` the number of each record's rarest label; those without any have their own."""
    totals = Counter(label for own in labels for label in set(own))
    chosen = [min(own, key=lambda label: (totals[label], label), default="") for own in labels]
    numbers = {label: i for i, label in enumerate(sorted(set(chosen)))}
    return np.array([numbers[label] for label in chosen], dtype=np.int64)


def _whole_groups(labels: Array, groups: Array, folds: int) -> Array:
    """Return `[G]`: the fold of each group."""
    number, kinds = int(groups.max()) + 1, int(labels.max()) + 1
    counts = np.zeros((number, kinds))
    np.add.at(counts, (groups, labels), 1)
    totals = counts.sum(0)
    # The largest first, as there is room for them; of equal ones in a random order.
    order = epoch_order(number, seed=0, epoch=0)
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    filled, chosen = np.zeros((folds, kinds)), np.empty(number, dtype=np.int64)
    empty = folds
    for place, group in enumerate(order.tolist()):
        # Every fold needs a group: the last ones go where there is none yet.
        open_folds = np.arange(folds)
        if number - place <= empty:
            open_folds = np.flatnonzero(filled.sum(1) == 0)
        tried = np.repeat(filled[None], len(open_folds), 0)
        tried[np.arange(len(open_folds)), open_folds] += counts[group]
        spread = np.round((tried / totals).std(1).mean(1), 12)
        sizes = filled[open_folds].sum(1)
        best = int(open_folds[np.lexsort((sizes, spread))[0]])
        empty -= int(filled[best].sum() == 0)
        filled[best] += counts[group]
        chosen[group] = best
    return chosen
