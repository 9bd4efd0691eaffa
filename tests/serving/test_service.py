"""The service and its workers: threads where that is all the same, processes where they die."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest

import pretune
from pretune.bundle.bundle import load, save
from pretune.decoding.decoding import Decoding
from pretune.errors import CheckpointError
from pretune.inference.embed import Embedder
from pretune.serving import pool as pool_module
from pretune.serving import service as service_module
from pretune.serving.jobs import Counts, Piece, Served
from pretune.serving.observer import SilentObserver
from pretune.serving.refusal import Refusal
from pretune.serving.service import Service
from tests.serving.models import model_of, options_for, same, saved
from tests.serving.thread_worker import thread_workers

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, Any]], Any]
TEXTS = [f"{'the good ' * (i % 6)}film {i}" for i in range(40)]
#: Much longer than a test: its client does not wait for the end.
ENDLESS = Decoding(max_new_tokens=100_000, seed=1, stop_tokens=())


class Told(SilentObserver):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int, Counts]] = []
        self.versions: list[tuple[str, int]] = []
        self.lengths: list[int] = []
        self.died = 0

    def request_done(
        self, model: str, kind: str, status: int, counts: Counts, seconds: float
    ) -> None:
        self.requests.append((model, kind, status, counts))

    def version(self, served: Served) -> None:
        self.versions.append((served.name, served.version))

    def queue(self, length: int) -> None:
        self.lengths.append(length)

    def worker_died(self) -> None:
        self.died += 1


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs coroutines in a loop that goes on between tests, as the server's does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(120)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("served")
    return {
        "mood": model_of("classify", tiny_folder, place),
        "writer": model_of("causal_lm", tiny_folder, place),
        "bare": tiny_folder,
    }


@pytest.fixture(scope="module")
def service(run: Run, folders: dict[str, Path], told: Told) -> Iterator[Service]:
    options = options_for(folders, max_new_tokens=100_000, max_inputs=50, max_chars=1000)
    served = Service(options, told)
    with thread_workers():
        run(served.start())
    yield served
    run(served.close(0))


@pytest.fixture
def processes(run: Run, folders: dict[str, Path], told: Told) -> Iterator[Service]:
    """A service whose worker is a process of its own."""
    served = Service(options_for(folders, max_new_tokens=100_000), told)
    run(served.start())
    yield served
    run(served.close(0))


@pytest.fixture
def limited(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes limits of the front for one test."""
    return lambda **limits: set_limits(service, monkeypatch, **limits)


def set_limits(service: Service, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> None:
    options = replace(service.options, **limits)
    monkeypatch.setattr(service, "options", options)
    monkeypatch.setattr(service._pool, "_options", options)


async def pieces_of(stream: Any, count: int | None = None) -> list[Piece]:
    """Take pieces of a stream, all or so many, and close it."""
    taken = []
    try:
        async for piece in stream:
            taken.append(piece)
            if len(taken) == count:
                break
    finally:
        await stream.aclose()
    return taken


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that has to happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def stream(service: Service, decoding: Decoding = ENDLESS, **more: Any) -> AsyncGenerator[Piece]:
    written = service.generate("writer", "the good", decoding, **more)
    return cast("AsyncGenerator[Piece]", written)


def refusal(run: Run, work: Coroutine[Any, Any, Any]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        run(work)
    return caught.value


class TestAnswers:
    def test_of_many_clients_at_once_are_those_of_predict(
        self, run: Run, service: Service, folders: dict[str, Path]
    ) -> None:
        async def ask() -> list[Any]:
            return await asyncio.gather(
                *(service.predict("mood", TEXTS[i : i + 1 + i % 3], top_k=2) for i in range(37))
            )

        expected = pretune.predict(str(folders["mood"]), TEXTS, device="cpu", precision="float32")
        for i, answers in enumerate(run(ask())):
            assert len(answers) == 1 + i % 3
            for text, own, answer in zip(TEXTS[i:], answers, expected[i:], strict=False):
                top = answer.top(2).to_dict()
                assert own["text"] == text
                assert own["label"] == top["label"]
                assert [*own["scores"]] == [*top["scores"]]
                assert [*own["scores"].values()] == pytest.approx(
                    [*top["scores"].values()], abs=1e-5
                )

    def test_vectors_are_those_of_embed(
        self, run: Run, service: Service, folders: dict[str, Path]
    ) -> None:
        async def ask() -> list[Any]:
            return await asyncio.gather(*(service.embed("bare", [text]) for text in TEXTS))

        vectors = np.concatenate([embedded.vectors for embedded in run(ask())])
        expected = Embedder(load(folders["bare"], bare=True), device="cpu").embed(TEXTS)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)

    def test_continuations_are_those_of_generate(
        self, run: Run, service: Service, folders: dict[str, Path]
    ) -> None:
        decoding = Decoding(max_new_tokens=8, seed=5)
        pieces = run(pieces_of(stream(service, decoding, samples=2)))
        expected = pretune.generate(
            str(folders["writer"]), "the good", max_new_tokens=8, seed=5, samples=2, device="cpu"
        )
        for own in expected:
            mine = [piece for piece in pieces if piece.sample == own.sample]
            assert "".join(piece.text for piece in mine) == own.text
            assert mine[-1].finish == own.finish
            assert mine[0].prompt_tokens > 0

    def test_what_is_known_of_models(self, service: Service, folders: dict[str, Path]) -> None:
        assert [model.name for model in service.models()] == ["mood", "writer", "bare"]
        assert service.model(None) is service.model("") is service.model("mood")
        assert service.model("mood").labels == ("good", "<i>bad", "好")
        assert service.model("bare").abilities == {"embed"}
        assert service.model("bare").task is None
        assert service.ready

    def test_predictions_do_not_wait_for_the_end_of_a_continuation(
        self, run: Run, service: Service
    ) -> None:
        async def ask() -> None:
            written = stream(service)
            await anext(written)
            assert len(await service.predict("mood", ["good"])) == 1
            before = service.held
            await anext(written)
            await written.aclose()
            assert (before, service.held) == (1, 0)

        run(ask())


class TestRefusals:
    def test_an_unknown_model_is_told_with_the_known_ones(self, run: Run, service: Service) -> None:
        refused = refusal(run, service.predict("moods", ["a"]))
        assert (refused.status, refused.kind, refused.param) == (404, "unknown_model", "model")
        assert "mood, writer, bare" in refused.message

    def test_what_a_model_cannot_do(self, run: Run, service: Service) -> None:
        refused = refusal(run, service.predict("bare", ["a"]))
        assert (refused.status, refused.kind) == (422, "unsupported")
        chat = service.generate("writer", [{"role": "user", "content": "a"}], Decoding())
        assert refusal(run, pieces_of(chat)).kind == "unsupported"

    @pytest.mark.parametrize(
        ("ask", "status", "limit"),
        [
            (lambda s: s.predict("mood", ["a"] * 51), 413, "max_inputs"),
            (lambda s: s.predict("mood", ["a" * 1001]), 413, "max_chars"),
            (lambda s: s.embed("bare", ["a" * 1001]), 413, "max_chars"),
            (lambda s: s.predict("mood", ["a"], top_k=10_000), 422, "max_top_k"),
            (lambda s: s.predict("mood", ["a"], top_k=0), 422, None),
            (lambda s: s.predict("mood", ["a"], top_k=True), 422, None),
            (lambda s: s.embed("bare", ["\ud800"]), 422, None),
            (lambda s: s.embed("bare", [7]), 422, None),
            (lambda s: s.predict("mood", [7]), 422, None),
            (lambda s: s.predict("mood", [["a", "b"]]), 422, None),
            (lambda s: pieces_of(stream(s, samples=17)), 422, "max_samples"),
            (
                lambda s: pieces_of(stream(s, Decoding(max_new_tokens=100_001))),
                422,
                "max_new_tokens",
            ),
        ],
    )
    def test_inputs_and_numbers_out_of_bounds(
        self, ask: Any, status: int, limit: str | None, run: Run, service: Service
    ) -> None:
        refused = refusal(run, ask(service))
        assert (refused.status, refused.limit) == (status, limit)
        assert service.held == 0

    def test_a_full_queue_is_told_at_once(
        self, run: Run, service: Service, limited: Callable[..., None]
    ) -> None:
        limited(max_queue=2)

        async def ask() -> Refusal:
            written = stream(service, samples=2)
            await anext(written)
            # The refusal does not wait for anything: no turn of the loop.
            with pytest.raises(Refusal) as caught:
                service.predict("mood", ["good"]).send(None)
            await written.aclose()
            assert len(await service.predict("mood", ["good"])) == 1
            return caught.value

        refused = run(ask())
        assert (refused.status, refused.kind, refused.limit) == (429, "queue_full", "max_queue")
        assert refused.retry_after is not None
        assert 1 <= refused.retry_after <= 60

    def test_an_answer_that_takes_too_long(
        self, run: Run, service: Service, limited: Callable[..., None], told: Told
    ) -> None:
        limited(timeout=0.2)
        refused = refusal(run, pieces_of(stream(service)))
        assert (refused.status, refused.kind, refused.limit) == (504, "timeout", "timeout")
        assert service.held == 0
        assert told.requests[-1][:3] == ("writer", "generate", 504)
        limited(timeout=60.0)
        # Its place in the batch is free again.
        assert len(run(pieces_of(stream(service, Decoding(max_new_tokens=3))))) == 3


def test_a_client_that_goes_away_is_counted_and_frees_its_place(
    run: Run, service: Service, told: Told
) -> None:
    async def ask() -> None:
        asked = asyncio.create_task(pieces_of(stream(service)))
        await until(lambda: service.held == 1)
        await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert service.held == 0

    run(ask())
    assert told.requests[-1][:3] == ("writer", "generate", 499)


def test_requests_are_counted_with_what_they_took(run: Run, service: Service, told: Told) -> None:
    run(service.predict("mood", ["good film"]))
    model, kind, status, counts = told.requests[-1]
    assert (model, kind, status) == ("mood", "predict", 200)
    assert counts.tokens == 4
    assert counts.version == 1
    assert counts.compute > 0
    assert counts.queue >= 0
    assert told.lengths[-2:] == [1, 0]


class TestSwap:
    def test_a_newer_model_takes_over_and_a_broken_one_does_not(
        self, run: Run, service: Service, folders: dict[str, Path], told: Told, caplog: Any
    ) -> None:
        folder, text = folders["mood"], "good film"
        (before,) = run(service.predict("mood", [text]))
        # A broken file: the old model stays.
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[:1000])
        assert not run(service.swap("mood"))
        assert run(service.predict("mood", [text])) == [before]
        assert service.model("mood").version == 1
        assert "'mood': the new version is not used" in caplog.text
        # Weights that are no numbers.
        (folder / "model.safetensors").write_bytes(weights)
        bundle = load(folder, mmap=False)
        for parameter in bundle.model.parameters():
            parameter.data.fill_(float("nan"))
        save(bundle, folder)
        assert not run(service.swap("mood"))
        assert "not finite" in caplog.text
        # Another model.
        (folder / "model.safetensors").write_bytes(weights)
        bundle = load(folder, mmap=False)
        for parameter in bundle.model.parameters():
            parameter.data.neg_()
        save(bundle, folder)

        # It is loaded while a client is answered by the old one.
        async def swap() -> list[Piece]:
            writing = asyncio.create_task(pieces_of(stream(service, Decoding(max_new_tokens=200))))
            assert await service.swap("mood")
            return await writing

        run(swap())
        assert service.model("mood").version == 2
        assert told.versions[-1] == ("mood", 2)
        # What took over is told, as `sha256sum` names it.
        digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]
        assert f"'mood': version 2 (weights {digest}) has taken over" in caplog.text
        assert service.model("mood").digest == digest
        (after,) = run(service.predict("mood", [text]))
        (expected,) = pretune.predict(str(folder), [text], device="cpu", precision="float32")
        assert after["scores"] == pytest.approx(expected.to_dict()["scores"], abs=1e-5)
        assert after["scores"] != before["scores"]
        assert told.requests[-1][3].version == 2


def test_a_worker_that_dies_is_replaced_and_what_it_held_is_refused(
    run: Run, processes: Service, folders: dict[str, Path], told: Told, caplog: Any, capfd: Any
) -> None:
    service = processes
    (pid,) = service.pids
    before = run(service.predict("mood", TEXTS))
    # By then its folder has something else, which no worker can read: the old one comes back.
    file, half = folders["mood"] / "model.safetensors", folders["mood"] / "half"
    weights = file.read_bytes()
    half.write_bytes(b"nothing")
    os.replace(half, file)
    assert not run(service.swap("mood"))

    async def ask() -> Refusal:
        written = stream(service)
        await anext(written)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Refusal) as caught:
            await pieces_of(written)
        # Until another one is there, requests are refused at once.
        with pytest.raises(Refusal) as refused:
            service.predict("mood", ["good"]).send(None)
        assert (refused.value.status, refused.value.kind) == (503, "unavailable")
        assert not service.ready
        await until(lambda: service.ready)
        return caught.value

    refused = run(ask())
    assert (refused.status, refused.kind) == (503, "worker_died")
    assert refused.retry_after is not None
    assert service.pids != [pid]
    assert same(run(service.predict("mood", TEXTS)), before)
    assert told.died == 1
    assert "worker 0 died (signal 9): 1 requests got 503" in caplog.text
    # Nothing of what anybody asked stands in a log.
    assert "the good" not in caplog.text + "".join(capfd.readouterr())
    file.write_bytes(weights)


def test_a_model_that_cannot_be_loaded_is_told_at_the_start(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with thread_workers(), pytest.raises(CheckpointError, match="broken"):
        run(Service(options_for({"one": folder})).start())


def test_a_changed_folder_is_seen_and_what_runs_is_finished_at_the_end(
    run: Run, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "EVERY", 0.05)
    first, second = tmp_path / "step-1", tmp_path / "step-2"
    shutil.copytree(folders["writer"], first)
    bundle = load(folders["writer"], mmap=False)
    for parameter in bundle.model.parameters():
        parameter.data.neg_()
    saved(bundle, second)
    (tmp_path / "best").symlink_to(first)
    service = Service(options_for({"writer": tmp_path}, watch=True, workers=2))

    async def life() -> None:
        with thread_workers():
            await service.start()
        assert len(service.pids) == 2
        old = await service.predict("writer", ["good"])
        (tmp_path / "new").symlink_to(second)
        os.replace(tmp_path / "new", tmp_path / "best")
        await until(lambda: service.model("writer").version == 2)
        # Every worker has it.
        new = await asyncio.gather(*(service.predict("writer", ["good"]) for _ in range(8)))
        assert all(same(answer, new[0]) for answer in new)
        assert not same(new[0], old)
        # At the end what runs is finished, and nothing more is taken.
        writing = asyncio.create_task(pieces_of(stream(service, Decoding(max_new_tokens=300))))
        await until(lambda: service.held == 1)
        closing = asyncio.create_task(service.close(60))
        await until(lambda: not service.ready)
        with pytest.raises(Refusal) as caught:
            await service.predict("writer", ["good"])
        assert (caught.value.status, caught.value.kind) == (503, "draining")
        assert (await writing)[-1].finish is not None
        await closing
        assert service.pids == []

    run(life())


@pytest.mark.slow
def test_a_worker_that_is_stuck_is_replaced(
    run: Run, processes: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = processes
    monkeypatch.setattr(pool_module, "STUCK", 0.2)
    set_limits(service, monkeypatch, timeout=0.3)
    (pid,) = service.pids

    async def ask() -> None:
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Refusal, match="longer than"):
            await service.predict("mood", ["good"])
        await until(lambda: service.pids not in ([], [pid]))

    run(ask())
    set_limits(service, monkeypatch, timeout=60.0)
    assert len(run(service.predict("mood", ["good"]))) == 1


@pytest.mark.slow
def test_a_worker_that_is_stuck_is_replaced_though_each_client_waits_for_less(
    run: Run, processes: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds nothing between two clients, as the first gave up before the second came."""
    service = processes
    monkeypatch.setattr(pool_module, "STUCK", 1.0)
    set_limits(service, monkeypatch, timeout=0.3)
    (pid,) = service.pids

    async def ask() -> None:
        os.kill(pid, signal.SIGSTOP)
        for _ in range(6):
            with pytest.raises(Refusal):
                await service.predict("mood", ["good"])
            await asyncio.sleep(0.05)
        await until(lambda: service.pids not in ([], [pid]))

    run(ask())
    set_limits(service, monkeypatch, timeout=60.0)
    assert len(run(service.predict("mood", ["good"]))) == 1
