from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import ByteLevelBPETokenizer

from pretune.bundle.bundle import Bundle, load, save
from pretune.serving.app import build_app
from pretune.serving.metrics import PrometheusMetrics
from pretune.serving.options import ServeOptions
from pretune.tasks.base import AnyTask
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.regression.regress import Regress, RegressOptions
from tests.inference.conftest import END, TEXTS, random_gpt2
from tests.serving.fake_service import FakeService, fake_service
from tests.serving.in_process import InProcess
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
            timeout=20,
        ),
    )
    yield live
    live.close()


#: Models for the tests of protocols, by their name in requests: the case of every_task they are.
NAMES = {
    "labels": "classify",
    "several": "multilabel",
    "score": "regress",
    "choices": "choose",
    "tags": "tag",
    "answers": "answer",
    "unanswerable": "answer_none",
    "fill": "mask_lm",
    "chat": "instruct",
    "translate": "translate",
    "summarize": "summarize",
}


def pair_scorer(tiny_folder: Path, task: AnyTask) -> Bundle:
    """A model of pairs, whose scores differ from pair to pair."""
    bundle = load(tiny_folder, task=task)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in bundle.model.named_parameters():
            if not name.startswith("backbone."):
                parameter.normal_(std=0.3)
    return bundle


def writer(folder: Path) -> Bundle:
    """A GPT-2 with random weights and a byte-level vocabulary."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        TEXTS * 3, vocab_size=300, min_frequency=2, special_tokens=[END], show_progress=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(f'{{"eos_token": "{END}"}}', encoding="utf-8")
    random_gpt2(folder, tokenizer.get_vocab_size(), tokenizer.token_to_id(END))
    return load(folder, task=CausalLm(CausalLmOptions(max_length=48)))


@pytest.fixture(scope="session")
def bundles(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A model for each task; the first has no task. Not to be changed."""
    made = {"bare": load(tiny_folder)}
    for name, case in NAMES.items():
        made[name] = CASES[case].bundle(tiny_folder, tmp_path_factory.mktemp(name))
    pair: dict[str, Any] = {"max_length": 64, "pair": True}
    made["ranks"] = pair_scorer(tiny_folder, Regress(RegressOptions(**pair)))
    made["alike"] = pair_scorer(tiny_folder, Classify(ClassifyOptions(**pair), ["no", "yes"]))
    made["lm"] = writer(tmp_path_factory.mktemp("lm"))
    return made


@pytest.fixture
def models(bundles: dict[str, Bundle]) -> InProcess:
    """A service with a model for each task."""
    return InProcess(bundles)


@pytest.fixture
def limits(bundles: dict[str, Bundle]) -> ServeOptions:
    return ServeOptions(models=tuple((name, name) for name in bundles))


@pytest.fixture
def client(models: InProcess, limits: ServeOptions) -> Iterator[TestClient]:
    """Asks the application without a socket."""
    app = build_app(models, limits, PrometheusMetrics())  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1:8000") as made:
        yield made


@pytest.fixture
def address(models: InProcess, limits: ServeOptions) -> Iterator[str]:
    """Where a real server listens, for the clients that people use."""
    live = LiveServer(models, limits)
    yield f"http://127.0.0.1:{live.port}"
    live.close()
