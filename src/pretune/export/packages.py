"""The packages of the extra `export`, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from pretune.errors import RunError


def needed(name: str) -> Any:
    """Import a package.

    Raises:
        RunError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise RunError(
            f"the Python package {name} is not installed",
            "Install it: pip install 'pretune[export]'",
        ) from None
