"""The folder of an export: the earlier model, or the new one, whenever it is interrupted."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pretune.checkpoints.atomic_io import atomic_text
from pretune.errors import RunError
from pretune.export.output_folder import check_new_folder, check_output_folder, output_folder


class Killed(BaseException):
    """Ends a command as a signal would: nothing catches it."""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("earlier", encoding="utf-8")
    return folder


def written(folder: Path) -> None:
    with output_folder(folder, overwrite=True) as place:
        (place / "config.json").write_text("new", encoding="utf-8")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_new_one_is_there_before_the_earlier_goes(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            written(earlier)
    assert (earlier / "config.json").read_text(encoding="utf-8") == "new"
    # What was left is gone with the next one.
    written(earlier)
    assert names(earlier.parent) == ["model"]


def test_the_earlier_one_stays_where_the_new_one_cannot_come(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        if str(source).endswith(".new"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(RunError, match="Input/output error"):
        written(earlier)
    assert (earlier / "config.json").read_text(encoding="utf-8") == "earlier"


def test_a_link_to_a_model_is_replaced_and_the_model_stays(earlier: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(earlier)
    written(link)
    assert not link.is_symlink()
    assert (earlier / "config.json").read_text(encoding="utf-8") == "earlier"


@pytest.mark.parametrize("url", ["s3://bucket/model", "gs://bucket/model", "hf://me/model"])
def test_a_url_is_no_folder_on_the_disk(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (check_new_folder, partial(check_output_folder, overwrite=False)):
        with pytest.raises(RunError, match="is a place in object storage"):
            check(Path(url))
    with pytest.raises(RunError, match="is a place in object storage"):
        atomic_text(Path(url), "x")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_nothing_is_refused_before_the_work(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is a link to .*nowhere, which is not there"):
        check_output_folder(link, overwrite=True)
    with pytest.raises(RunError, match="is a link to"):
        check_new_folder(link)
