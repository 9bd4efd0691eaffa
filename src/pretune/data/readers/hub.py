"""Datasets on the Hub. Their library is imported only when one is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pretune.data.records import Records
from pretune.errors import DataError

#: A dataset on the Hub, as recipes name it.
HUB_DATASET = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)"
    r"(?::(?P<config>[\w.+-]+))?"
    r":(?P<split>[\w.+-]+(?:\[[\d%:-]+\])?)"  # a part of a split: train[:10%]
)


def read_hub(source: str) -> Records:
    """Read a split of a dataset on the Hub, named as `HUB_DATASET` matches."""
    table = hub_table(source)
    categories = category_names(table.features.to_dict())
    return Records(table.to_list(), source, None, tuple(table.column_names), categories)


def hub_table(source: str) -> Any:
    """Load a split as `datasets` maps it into memory (`HF_ENDPOINT`, `HF_HUB_OFFLINE`)."""
    import datasets

    match = HUB_DATASET.fullmatch(source)
    if match is None:
        raise DataError(
            f"'{source}': not the name of a dataset on the Hub", "owner/name[:config]:split"
        )
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(match["name"], match["config"], split=match["split"])
    except Exception as error:  # its own errors, those of requests, and plain ValueErrors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{source}: could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}: {reason})",
            "If the Hub cannot be reached, use local files instead: data.train=FILE "
            "data.validation=FILE (or data.validation=0.1, to hold back a tenth of data.train); "
            "HF_ENDPOINT names a mirror.",
        ) from error


def category_names(features: Any) -> dict[str, list[str]]:
    """The names of the categories, for each column of categories or of lists of categories.

    `features` is `Features.to_dict()` of `datasets`, which its Parquet files hold too.
    """
    names_of = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        # A list of categories has the feature of its items inside.
        while isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, Mapping) else None
        if isinstance(names, list) and feature.get("_type") == "ClassLabel":
            names_of[str(column)] = [str(name) for name in names]
    return names_of
