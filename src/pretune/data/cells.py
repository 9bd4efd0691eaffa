"""Cells that hold nothing."""

from __future__ import annotations

import math


def not_finite(value: object) -> bool:
    """Whether this is NaN or infinite: what pandas, and so Parquet and JSON, has for nothing."""
    return isinstance(value, float) and not math.isfinite(value)


def is_missing(value: object) -> bool:
    """Whether this is nothing: null, an empty text or no finite number."""
    return value is None or (isinstance(value, str) and not value) or not_finite(value)
