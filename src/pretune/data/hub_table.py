"""Datasets on the Hugging Face Hub."""

from __future__ import annotations

import re
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
