"""What arrives at a stand-in for the Hub, and what is said when it refuses.

The real Hub was never asked, nor its newer protocol for large files (Xet).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

import pretune
from pretune.errors import HubError, PretuneError
from pretune.publishing import publish
from tests.publishing import fake_hub
from tests.publishing.small_runs import REPO


def silent(_: str) -> None: ...


class TestUpload:
    def test_what_arrives_is_what_was_staged(
        self, hub: fake_hub.FakeHub, run_folder: Path, staged: Path
    ) -> None:
        said: list[str] = []
        done = publish.push(
            run_folder, REPO, license_id="apache-2.0", languages=["en"], say=said.append
        )
        repo = hub.repos[REPO]
        arrived = {name: raw for name, raw in repo.files.items() if name != ".gitattributes"}
        assert arrived == {p.name: p.read_bytes() for p in staged.iterdir()}
        assert repo.commits == 1
        assert done.url == f"{hub.url}/{REPO}"
        assert {file.name for file in done.files} == set(arrived)
        assert len(said) == 1
        assert said[0].startswith("sending 7 files")

    def test_from_python(
        self, hub: fake_hub.FakeHub, run_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        done = pretune.push(run_folder, REPO, license_id="mit", languages=["en"])
        assert isinstance(done, pretune.Published)
        assert done.url == f"{hub.url}/{REPO}"
        assert done.private
        assert {file.name for file in done.files} <= hub.repos[REPO].files.keys()
        assert b"license: mit" in hub.repos[REPO].files["README.md"]
        assert capsys.readouterr().out.startswith("sending 7 files")

    def test_private_unless_told_otherwise(self, hub: fake_hub.FakeHub, run_folder: Path) -> None:
        assert publish.push(run_folder, REPO, say=silent).private
        (asked,) = hub.bodies("/api/repos/create")
        assert asked.get("visibility", "private") == "private"
        assert asked.get("private", True) is True
        assert hub.repos[REPO].private
        assert not publish.push(run_folder, "me/open", public=True, say=silent).private
        assert not hub.repos["me/open"].private

    def test_again_into_the_same_repository(self, hub: fake_hub.FakeHub, run_folder: Path) -> None:
        publish.push(run_folder, REPO, say=silent)
        hub.repos[REPO].files["notes.txt"] = b"mine"
        again = publish.push(run_folder, REPO, public=True, say=silent)
        assert again.private, "an existing repository is not opened"
        assert hub.repos[REPO].files["notes.txt"] == b"mine"
        assert len(hub.bodies("/api/repos/create")) == 1

    def test_a_public_repository_takes_a_word_more(
        self, hub: fake_hub.FakeHub, run_folder: Path
    ) -> None:
        hub.repos[REPO] = fake_hub.Repo(private=False)
        with pytest.raises(HubError, match=r"(?s)everybody can see it.*--public"):
            publish.push(run_folder, REPO, say=silent)
        assert hub.repos[REPO].commits == 0
        publish.push(run_folder, REPO, public=True, say=silent)

    def test_somebody_elses_model_is_not_written_over(
        self, hub: fake_hub.FakeHub, run_folder: Path
    ) -> None:
        files = {"pytorch_model.bin": b"", "config.json": b"{}", "README.md": b""}
        hub.repos[REPO] = fake_hub.Repo(private=True, files=files)
        with pytest.raises(HubError, match=r"not a model of pretune \(config.json, pytorch_model"):
            publish.push(run_folder, REPO, say=silent)
        assert hub.repos[REPO].commits == 0

    @pytest.mark.parametrize(
        ("part", "status", "said"),
        [
            ("/api/models/me/films", 401, "hf auth login"),
            ("/api/models/me/films", 500, "trouble"),
            ("/api/repos/create", 401, "hf auth login"),
            ("/api/repos/create", 403, "write access"),
            ("/api/repos/create", 404, "owner's name"),
            ("/api/repos/create", 409, "choose another name"),
            ("/api/repos/create", 500, "trouble"),
            ("/preupload/", 403, "still empty"),
            ("/objects/batch", 403, "still empty"),
            ("/lfs/", 403, "HTTP 403"),
            ("/commit/", 404, "still empty"),
            ("/commit/", 500, "trouble"),
            ("/api/validate-yaml", 500, "trouble"),
        ],
    )
    def test_what_the_hub_refuses_is_said(
        self, hub: fake_hub.FakeHub, run_folder: Path, part: str, status: int, said: str
    ) -> None:
        hub.refuses[part] = status
        with pytest.raises(HubError) as caught:
            publish.push(run_folder, REPO, say=silent)
        assert said in str(caught.value)
        assert fake_hub.TOKEN not in str(caught.value)
        assert REPO not in hub.repos or hub.repos[REPO].commits == 0

    def test_a_card_that_the_hub_does_not_read_makes_nothing(
        self, hub: fake_hub.FakeHub, run_folder: Path
    ) -> None:
        hub.refuses["/api/validate-yaml"] = 400
        with pytest.raises(HubError, match=r"(?s)does not accept the model card.*--license"):
            publish.push(run_folder, REPO, license_id="mine", say=silent)
        assert hub.repos == {}

    def test_the_command(self, hub: fake_hub.FakeHub, run_folder: Path, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pretune", "push", str(run_folder), REPO],
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_XET": "1",
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{hub.url}/{REPO} (private)"
        assert [line for line in done.stderr.splitlines() if line.startswith("sending 7 files")]
        assert hub.repos[REPO].private
        assert "model.safetensors" in hub.repos[REPO].files

    def test_a_wrong_token(
        self, hub: fake_hub.FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with pytest.raises(HubError, match=r"(?s)HTTP 401.*hf auth login"):
            publish.push(run_folder, REPO, say=silent)
        assert hub.repos == {}

    def test_no_token(
        self,
        hub: fake_hub.FakeHub,
        run_folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        monkeypatch.setattr(
            huggingface_hub.constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none either")
        )
        with pytest.raises(HubError, match=r"(?s)no token.*hf auth login.*HF_TOKEN"):
            publish.push(run_folder, REPO, say=silent)
        assert hub.asked == []

    def test_offline(
        self, hub: fake_hub.FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            publish.push(run_folder, REPO, say=silent)
        assert hub.asked == []

    def test_nobody_answers(
        self, hub: fake_hub.FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
        with pytest.raises(HubError, match=r"(?s)could not be sent.*Check the connection"):
            publish.push(run_folder, REPO, say=silent)

    def test_every_error_is_one_that_the_command_line_prints(self) -> None:
        assert issubclass(HubError, PretuneError)
