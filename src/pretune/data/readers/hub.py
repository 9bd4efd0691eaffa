"""Datasets on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pretune.errors import DataError

#: A dataset on the Hub, as recipes name it.
HUB_DATASET = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)"
    r"(?::(?P<config>[\w.+-]+))?"
    r":(?P<split>[\w.+-]+(?:\[[\d%:-]+\])?)"  # a split may be cut: train[:10%]
)


def hub_table(source: str) -> Any:
    """A split from the Hub, as `datasets` maps it into memory (`HF_ENDPOINT`, `HF_HUB_OFFLINE`).

    Raises:
        DataError: it could not be loaded.
    """
    import datasets

    match = HUB_DATASET.fullmatch(source)
    if match is None:
        raise DataError(f"'{source}': no name of a dataset on the Hub", "owner/name[:config]:split")
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(match["name"], match["config"], split=match["split"])
    except Exception as error:  # the library raises its own, requests', and plain ValueErrors
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{source}: could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}: {reason})",
            "If the Hub cannot be reached, use a local file instead: data.train=FILE "
            "data.validation=FILE; HF_ENDPOINT names a mirror.",
        ) from error


def category_names(features: Any) -> dict[str, list[str]]:
    """The names of the columns of categories, or of lists of such.

    Args:
        features: `Features.to_dict()` of `datasets`, which it also leaves in its Parquet files.
    """
    found = {}
    for column, feature in features.items() if isinstance(features, Mapping) else ():
        while isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, Mapping) else None
        if isinstance(names, list) and feature.get("_type") == "ClassLabel":
            found[str(column)] = [str(name) for name in names]
    return found


def stored_categories(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """`category_names` by the metadata of a Parquet file that `datasets` has written."""
    try:
        said = json.loads(metadata.get(b"huggingface", b"{}"))
        return category_names(said["info"]["features"])
    except (ValueError, KeyError, TypeError):
        return {}
