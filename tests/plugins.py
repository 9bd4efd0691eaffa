"""Packages with entry points, installed for the length of a test."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pretune.registry import Registry


def forget_plugins(*registries: Registry[object]) -> None:
    """Have registries look for entry points again."""
    for registry in registries:
        vars(registry).pop("plugins", None)
        for name in set(registry._loaded) - set(registry.builtin):
            del registry._loaded[name]


def install_plugin(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    code: str,
    entry_points: Mapping[str, str],
) -> None:
    """Install a package of one module.

    Args:
        folder: an empty folder, which is put on `sys.path` for the length of the test.
        monkeypatch: of the test.
        package: of the distribution; its module has underscores in place of hyphens.
        code: of the module.
        entry_points: group -> the group's line, `name = module:attribute`.
    """
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    groups = [f"[{group}]\n{line}\n" for group, line in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
