from __future__ import annotations

import os
import shutil
from pathlib import Path

from pretune.serving.watch import Watched, fingerprint


def test_new_weights_are_told_once_and_only_when_they_are_written(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    watched = Watched(str(folder))
    assert not watched.changed()
    weights = (folder / "model.safetensors").read_bytes()
    # Half of a file, then all of it: each look sees another one.
    (folder / "model.safetensors").write_bytes(weights[:100])
    assert not watched.changed()
    (folder / "model.safetensors").write_bytes(weights)
    assert not watched.changed()
    assert watched.changed()
    assert not watched.changed()


def test_a_run_whose_best_checkpoint_is_another_one(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("step-1", "step-2"):
        shutil.copytree(tiny_folder, tmp_path / name)
    (tmp_path / "best").symlink_to(tmp_path / "step-1")
    watched = Watched(str(tmp_path))
    (tmp_path / "new").symlink_to(tmp_path / "step-2")
    os.replace(tmp_path / "new", tmp_path / "best")
    assert [watched.changed() for _ in range(3)] == [False, True, False]
    # While there is no model nothing is new.
    (tmp_path / "best").unlink()
    assert [watched.changed() for _ in range(3)] == [False, False, False]


def test_what_is_no_part_of_the_model_does_not_count(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    before = fingerprint(str(folder))
    (folder / "README.md").write_text("A card.", encoding="utf-8")
    assert fingerprint(str(folder)) == before is not None


def test_a_model_that_is_not_on_this_machine_is_not_watched() -> None:
    assert fingerprint("owner/name") is None
    assert fingerprint("minilm") is None
