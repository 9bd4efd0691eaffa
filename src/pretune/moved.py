"""Names and modules that used to be elsewhere: old imports still work, with a warning.

Nothing here imports anything before an old name is asked for.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

#: Old module -> where its contents are now.
MODULES = {
    "pretune.hub.ngram": "pretune.checkpoints.ngram_files",
    "pretune.infer.chat": "pretune.inference.chat",
    "pretune.infer.examine": "pretune.evaluation.examine",
    "pretune.infer.harness": "pretune.evaluation.harness",
    "pretune.report.compare": "pretune.evaluation.compare",
    "pretune.tasks.bundle": "pretune.bundle.bundle",
}
#: Package -> names that could be imported from it, and where they are now.
NAMES = {
    "pretune.corpus": {
        "Corpus": "pretune.corpus.store:Corpus",
        "Settings": "pretune.corpus.pipeline:Settings",
        "prepare": "pretune.corpus.pipeline:prepare",
    },
    "pretune.data": {
        "PackedBatch": "pretune.data.batch:PackedBatch",
        "read": "pretune.data.readers.files:read",
    },
    "pretune.hub": {"atomic_folder": "pretune.checkpoints.atomic_io:atomic_folder"},
    "pretune.infer": {"TextGenerator": "pretune.inference.generate:TextGenerator"},
    "pretune.models": {"LanguageModel": "pretune.models.language_model:LanguageModel"},
    "pretune.report": {},
    "pretune.text": {
        "find_files": "pretune.text.raw_text:find_files",
        "iter_texts": "pretune.text.raw_text:iter_texts",
        "load_tokenizer": "pretune.tokenizers.load:load_tokenizer",
        "save_trained": "pretune.tokenizers.train:save_trained",
        "take_sample": "pretune.text.text_sample:take_sample",
        "train_tokenizer": "pretune.tokenizers.train:train_tokenizer",
    },
}


def old_names(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package from which names have moved.

    Args:
        package: one of `NAMES`.
    """

    def get(name: str) -> Any:
        if name not in NAMES[package]:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, _, attribute = NAMES[package][name].partition(":")
        _warn(f"{package}.{name}", f"{module}.{attribute}")
        return getattr(import_module(module), attribute)

    return get


class _OldModules:
    """Finds and loads the modules of `MODULES`, and the packages of `NAMES` that have no file now.

    Last among Python's finders, it is asked only where no file is found. It has a finder's and a
    loader's methods, but not their base classes, whose import costs as much as half of `--help`.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in MODULES or fullname in NAMES:
            return ModuleSpec(fullname, self, is_package=fullname in NAMES)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name in NAMES:
            vars(module)["__getattr__"] = old_names(name)
            return
        _warn(name, MODULES[name])
        # The import system returns what stands in sys.modules when this is over.
        sys.modules[name] = import_module(MODULES[name])

    def get_code(self, fullname: str) -> CodeType | None:
        """The code that `python -m` runs."""
        from importlib.util import find_spec

        _warn(fullname, MODULES[fullname])
        spec = find_spec(MODULES[fullname])
        code: CodeType | None = spec.loader.get_code(MODULES[fullname])  # type: ignore[union-attr]
        return code


def _warn(old: str, new: str) -> None:
    # 3: whoever asked the function of this file that calls here; the import system's own frames
    # do not count.
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)


def install() -> None:
    """Let Python find the old modules; a second call does nothing."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())
