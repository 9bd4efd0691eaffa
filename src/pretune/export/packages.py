"""The packages that other formats are written and opened with, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from pretune.errors import RunError

#: Packages that are not part of the extra `export`.
_APART = ("ctranslate2",)


def needed(name: str) -> Any:
    """Import a package.

    Raises:
        RunError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        what = name if name in _APART else "'pretune[export]'"
        raise RunError(
            f"the Python package {name} is not installed", f"Install it: pip install {what}"
        ) from None
