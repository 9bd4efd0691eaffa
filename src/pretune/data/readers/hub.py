"""Datasets on the Hub, and Parquet files. Their libraries are imported only when one is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
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
            "If the Hub cannot be reached, use a local file instead: data.train=FILE "
            "data.validation=FILE; HF_ENDPOINT names a mirror.",
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


def stored_categories(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """`category_names` from the metadata of a Parquet file that `datasets` has written."""
    try:
        return category_names(json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}


def read_parquet(path: Path) -> Records:
    """Read all columns of a Parquet file.

    Raises:
        DataError: not a Parquet file, or a value that Python cannot hold; names the column.
    """
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read ({error})", "Write it again."
        ) from None
    values = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            values.append(column.to_pylist())
        except (ValueError, OverflowError) as error:  # bytes that are not UTF-8, dates out of range
            raise DataError(
                f"{path}, column '{name}': a value that cannot be read ({error})",
                "Repair it, or write the file without that column.",
            ) from None
    names = tuple(table.column_names)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return Records(rows, str(path), None, names, stored_categories(table.schema.metadata or {}))
