"""pretune: from raw text to a served language model.

The public functions are `load`, `train`, `evaluate`, `predict`, `generate`, `prompt`,
`embed` and `push`; see their help.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretune.api import (
        Bundle,
        Evaluation,
        FewShotResult,
        Generation,
        Prediction,
        Published,
        Recipe,
        RunResult,
        embed,
        evaluate,
        generate,
        load,
        predict,
        prompt,
        push,
        resume,
        train,
    )
    from pretune.errors import PretuneError

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Evaluation",
    "FewShotResult",
    "Generation",
    "Prediction",
    "PretuneError",
    "Published",
    "Recipe",
    "RunResult",
    "embed",
    "evaluate",
    "generate",
    "load",
    "predict",
    "prompt",
    "push",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: torch takes a second, which `pretune --help` need not wait for.
    if name == "PretuneError":
        return importlib.import_module("pretune.errors").PretuneError
    if name in __all__:
        return getattr(importlib.import_module("pretune.api"), name)
    raise AttributeError(f"module 'pretune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
