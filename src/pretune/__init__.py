"""pretune: from raw text to a served language model.

The public functions are `load`, `train`, `evaluate`, `predict`, `generate`, `prompt`,
`embed` and `push`; see their help.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pretune import moved
from pretune.version import __version__ as __version__

if TYPE_CHECKING:
    from pretune.api import embed, evaluate, generate, predict, prompt, resume, train
    from pretune.bundle.bundle import Bundle, load
    from pretune.decoding.continuations import Generation
    from pretune.errors import PretuneError
    from pretune.evaluation.few_shot.result import FewShotResult
    from pretune.publishing.publish import push
    from pretune.publishing.upload import Published
    from pretune.recipe.recipe import Recipe
    from pretune.tasks.base import Prediction
    from pretune.training.run_result import RunResult
    from pretune.training.validation import Evaluation


moved.install()

#: Where each public name lives.
_HOMES = {
    "Bundle": "bundle.bundle",
    "Evaluation": "training.validation",
    "FewShotResult": "evaluation.few_shot.result",
    "Generation": "decoding.continuations",
    "Prediction": "tasks.base",
    "PretuneError": "errors",
    "Published": "publishing.upload",
    "Recipe": "recipe.recipe",
    "RunResult": "training.run_result",
    "embed": "api",
    "evaluate": "api",
    "generate": "api",
    "load": "bundle.bundle",
    "predict": "api",
    "prompt": "api",
    "push": "publishing.publish",
    "resume": "api",
    "train": "api",
}

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
    if name in _HOMES:
        return getattr(importlib.import_module(f"pretune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pretune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
