from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pretune.bundle.bundle import save
from tests.serving.fake_service import FakeService, fake_service
from tests.serving.live_server import LiveServer, some_options
from tests.tasks.every_task import CASES


@pytest.fixture(scope="session")
def classifier(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny classifier. Not to be changed."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    folder.mkdir()
    save(CASES["classify"].bundle(tiny_folder, folder), folder)
    return folder


@pytest.fixture(scope="session")
def fake(classifier: Path) -> FakeService:
    return fake_service(classifier)


@pytest.fixture(scope="module")
def server(fake: FakeService) -> Iterator[LiveServer]:
    """A server with small limits."""
    live = LiveServer(
        fake,
        some_options(
            max_body=100_000,
            max_inputs=20,
            max_chars=1000,
            max_depth=8,
            max_values=500,
            max_top_k=5,
            header_seconds=0.4,
            body_seconds=0.4,
            write_seconds=0.4,
            timeout=20,
        ),
    )
    yield live
    live.close()
