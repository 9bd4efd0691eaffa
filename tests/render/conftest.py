from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeFolder = Callable[..., Path]


@pytest.fixture
def config_folder(tmp_path: Path) -> MakeFolder:
    """A folder with nothing but a `config.json`; sizes not given are the published ones."""

    def make(family: str, **values: Any) -> Path:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        text = json.dumps({"model_type": family, **values})
        (folder / "config.json").write_text(text, encoding="utf-8")
        return folder

    return make
