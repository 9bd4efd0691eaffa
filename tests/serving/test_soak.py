"""Half an hour of everything at once, or some minutes of it.

    PRETUNE_SOAK_MINUTES=30 python -m pytest -m slow tests/serving/test_soak.py -s

Clients ask models of many tasks, hang up in the middle, send what is too large or no request at
all, and a model is replaced again and again, sometimes by a broken one. Every answer is compared
with what the library computes without a server; memory, files and threads have to stay as they are.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pretune
from pretune.bundle.bundle import load, save
from pretune.decoding.decoding import Decoding
from pretune.inference.chat import Conversation
from pretune.inference.embed import Embedder
from pretune.inference.fill import MaskFiller
from pretune.inference.predict import Predictor, shown_inputs
from tests.serving.live_server import wait_until
from tests.serving.models import model_of, same, unlabelled
from tests.serving.served_process import Process, children_of

MINUTES = float(os.environ.get("PRETUNE_SOAK_MINUTES", "2"))
#: Seconds between two swaps: a minute, or a dozen of them in a short run.
SWAP_EVERY = min(60.0, 60 * MINUTES / 12)
CLIENTS = 6
#: Tasks that are asked at `/v1/predict`, besides the classifier that is replaced.
TASKS = ("tag", "answer", "choose", "mask_lm", "translate")
WRITING = Decoding(max_new_tokens=6, temperature=0)
#: How much more memory the processes may have at the end than after the warm-up.
GROWTH = 1.05

#: What leaks leaks again and again: a file with each of hundreds of connections that were hung up,
#: or with each version taken over, of which there are at least so many. One more may be open for a
#: while, of a connection whose time is not up.
FILES = 4

#: Threads that asyncio makes one by one, and keeps, for what would block its loop.
POOLED = min(32, (os.cpu_count() or 1) + 4)

#: What is no answer: path, body, and the statuses that may be told.
WRONG: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("/v1/predict", b'{"inputs": ["a"', (400,)),
    ("/v1/predict", b'{"inputs": [NaN]}', (400,)),
    ("/v1/predict", b'{"inputs": ["\xff"]}', (400,)),
    ("/v1/predict", b"[" * 100_000, (400,)),
    ("/v1/predict", json.dumps({"inputs": 7}).encode(), (422,)),
    ("/v1/predict", json.dumps({"model": "nobody", "inputs": ["a"]}).encode(), (404,)),
    ("/v1/predict", json.dumps({"inputs": ["a"] * 2049}).encode(), (413,)),
    ("/v1/predict", json.dumps({"inputs": ["a" * 200_001]}).encode(), (413,)),
    ("/v1/predict", b'"' + b"a" * 1_100_000 + b'"', (413,)),
    ("/v1/chat/completions", json.dumps({"model": "chat", "messages": []}).encode(), (400,)),
    ("/v1/completions", json.dumps({"model": "lm", "prompt": "a", "n": 10**6}).encode(), (400,)),
    ("/nothing", b"{}", (404, 405)),
]
#: What is no HTTP.
NOISE = (
    b"GET / HTTP/1.1\r\nHost:\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 50\r\n\r\n{",
)


@dataclass
class Tally:
    """What happened, from all clients."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, right: bool, what: Any = "") -> None:
        with self.lock:
            self.counts[kind] += 1
            if not right:
                self.wrong.append(f"{kind}: {str(what)[:500]}")


class Expected:
    """Requests and what the library answers, computed before the server is asked."""

    def __init__(self, folders: dict[str, Path], versions: list[Path], bare: Path) -> None:
        self.rows = {task: unlabelled(task, 24) for task in ("classify", *TASKS)}
        # The classifier's answers by version: the first, the second, the first, ...
        self.classify = [predicted(folder, self.rows["classify"]) for folder in versions]
        self.predict = {task: predicted(folders[task], self.rows[task]) for task in TASKS}
        self.texts = [row["text"] for row in self.rows["classify"]]
        self.vectors = Embedder(load(bare, bare=True), device="cpu").embed(self.texts)
        prompts = ["the good", "bad film", "the", "un x 好"]
        self.written = [(p, self._written(folders["lm"], p)) for p in prompts]
        self.drawn = [
            (p, seed, [g.text for g in self._drawn(folders["lm"], p, seed)])
            for seed, p in enumerate(prompts)
        ]
        talks = [Conversation(load(folders["chat"]), WRITING, device="cpu") for _ in prompts]
        self.said = [
            (prompt, "".join(part.text for part in talk.say(prompt)))
            for prompt, talk in zip(prompts, talks, strict=True)
        ]
        filler = MaskFiller(Predictor(load(folders["mask_lm"]), device="cpu"))
        masked = [f"[MASK] {text}" for text in ("the film", "good bad")]
        self.filled = [(text, filler.fill([text], top_k=3)[0]) for text in masked]

    def _written(self, folder: Path, prompt: str) -> str:
        (written,) = pretune.generate(
            str(folder), prompt, device="cpu", max_new_tokens=6, temperature=0
        )
        return written.text

    def _drawn(self, folder: Path, prompt: str, seed: int) -> list[Any]:
        options: dict[str, Any] = {"max_new_tokens": 6, "seed": seed, "samples": 2, "top_p": 1.0}
        return pretune.generate(str(folder), prompt, device="cpu", **options)


def predicted(folder: Path, rows: list[Any]) -> list[Any]:
    """What `pretune predict --json` prints for each row, after a turn through JSON."""
    predictor = Predictor(load(folder), device="cpu", precision="float32")
    answers = []
    for row in rows:
        records = predictor.records([row])
        (answer,) = predictor.predict(records)
        answers.append(
            {**shown_inputs(predictor.task, records.rows[0]), **answer.top(None).to_dict()}
        )
    return list(json.loads(json.dumps(answers)))


class Client(threading.Thread):
    """Does one thing after another until it is told to stop."""

    def __init__(self, number: int, port: int, expected: Expected, tally: Tally) -> None:
        super().__init__(daemon=True)
        self.port, self.expected, self.tally = port, expected, tally
        self.chance, self.stopped = random.Random(number), threading.Event()
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        acts: dict[Callable[[], None], int] = {
            self.classify: 6,
            self.predict: 6,
            self.embed: 3,
            self.write: 3,
            self.draw: 2,
            self.stream: 2,
            self.chat: 2,
            self.fill: 2,
            self.hang_up: 2,
            self.break_off: 1,
            self.ask_wrongly: 3,
            self.talk_nonsense: 1,
        }
        self.acts = [act for act, weight in acts.items() for _ in range(weight)]

    def run(self) -> None:
        with closing(self.connection):
            while not self.stopped.is_set():
                act = self.chance.choice(self.acts)
                try:
                    act()
                except Exception as error:
                    self.tally.note(act.__name__, False, f"{type(error).__name__}: {error}")
                    self.connection.close()

    def ask(self, path: str, body: Any) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request("POST", path, content, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        text = response.read()
        return response.status, json.loads(text)

    def some(self, items: list[Any]) -> tuple[int, int]:
        start = self.chance.randrange(len(items))
        return start, min(len(items), start + self.chance.randint(1, 4))

    # What is answered.

    def classify(self) -> None:
        start, stop = self.some(self.expected.rows["classify"])
        body = {"model": "mood", "inputs": self.expected.rows["classify"][start:stop]}
        status, answer = self.ask("/v1/predict", body)
        # While a version takes over, the next one may have answered.
        wanted = [own[start:stop] for own in self.expected.classify]
        first = (answer["version"] + 1) % 2 if status == 200 else 0
        right = status == 200 and any(
            same(answer["answers"], wanted[(first + later) % 2]) for later in (0, 1)
        )
        self.tally.note("classify", right, answer)
        if right and not same(answer["answers"], wanted[first]):
            self.tally.note("classify by the version after", True)

    def predict(self) -> None:
        task = self.chance.choice(TASKS)
        start, stop = self.some(self.expected.rows[task])
        body = {"model": task, "inputs": self.expected.rows[task][start:stop]}
        status, answer = self.ask("/v1/predict", body)
        wanted = self.expected.predict[task][start:stop]
        right = status == 200 and same(answer["answers"], wanted)
        self.tally.note(task, right, (answer, wanted))

    def embed(self) -> None:
        start, stop = self.some(self.expected.texts)
        body = {"model": "bare", "input": self.expected.texts[start:stop]}
        status, answer = self.ask("/v1/embeddings", body)
        vectors = np.array([row["embedding"] for row in answer["data"]])
        right = status == 200 and np.allclose(vectors, self.expected.vectors[start:stop], atol=1e-5)
        self.tally.note("embed", right, answer)

    def write(self) -> None:
        prompt, text = self.chance.choice(self.expected.written)
        body = {"model": "lm", "prompt": prompt, "max_tokens": 6, "temperature": 0}
        status, answer = self.ask("/v1/completions", body)
        right = status == 200 and answer["choices"][0]["text"] == text
        self.tally.note("generate", right, (answer, text))

    def draw(self) -> None:
        prompt, seed, texts = self.chance.choice(self.expected.drawn)
        body = {"model": "lm", "prompt": prompt, "max_tokens": 6, "seed": seed, "n": 2}
        status, answer = self.ask("/v1/completions", body)
        right = status == 200 and [own["text"] for own in answer["choices"]] == texts
        self.tally.note("generate, drawn", right, (answer, texts))

    def stream(self) -> None:
        prompt, text = self.chance.choice(self.expected.written)
        body = {"model": "lm", "prompt": prompt, "max_tokens": 6, "temperature": 0, "stream": True}
        self.connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        whole = self.connection.getresponse().read().decode()
        events = [part.removeprefix("data: ") for part in whole.split("\n\n") if part]
        pieces = [json.loads(own)["choices"][0]["text"] for own in events[:-1]]
        right = events[-1] == "[DONE]" and "".join(pieces) == text
        self.tally.note("generate, streamed", right, (whole, text))

    def chat(self) -> None:
        prompt, text = self.chance.choice(self.expected.said)
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "chat", "messages": messages, "max_tokens": 6, "temperature": 0}
        status, answer = self.ask("/v1/chat/completions", body)
        right = status == 200 and answer["choices"][0]["message"]["content"] == text
        self.tally.note("chat", right, (answer, text))

    def fill(self) -> None:
        text, gaps = self.chance.choice(self.expected.filled)
        body = {"inputs": text, "parameters": {"top_k": 3}}
        status, answer = self.ask("/models/mask_lm", body)
        wanted = [(own["token_str"], own["score"]) for own in gaps[0]]
        given = [(own["token_str"], own["score"]) for own in answer] if status == 200 else []
        self.tally.note("fill", same(given, wanted), (answer, wanted))

    # What is not.

    def hang_up(self) -> None:
        """Leave a stream after its first event."""
        body = {"model": "lm", "prompt": "the", "max_tokens": 3000, "stream": True}
        content = json.dumps({**body, "logit_bias": {"0": 0}}).encode()
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            connection.sendall(self.head("/v1/completions", len(content)) + content)
            received = b""
            while b"data: " not in received:
                part = connection.recv(1000)
                if not part:
                    break
                received += part
        self.tally.note("hung up in a stream", b"data: " in received, received)

    def break_off(self) -> None:
        """Leave in the middle of a request, or before its answer."""
        content = json.dumps({"model": "tag", "inputs": [{"tokens": ["good"] * 9}] * 50}).encode()
        sent = content[: self.chance.choice((10, len(content)))]
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            connection.sendall(self.head("/v1/predict", len(content)) + sent)
        self.tally.note("hung up before the answer", True)

    def ask_wrongly(self) -> None:
        path, body, statuses = self.chance.choice(WRONG)
        status, answer = self.ask(path, body)
        error = answer["error"]
        message = error["message"] if isinstance(error, dict) else error
        right = status in statuses and 10 < len(message) < 1000
        self.tally.note("refused", right, (path, status, answer))
        # What was sent beyond the limit is not read to its end: the connection is not used again.
        if len(body) > 1_000_000:
            self.connection.close()

    def talk_nonsense(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as connection:
            connection.sendall(self.chance.choice(NOISE))
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while connection.recv(10_000):
                    pass
        self.tally.note("no HTTP", True)

    def head(self, path: str, length: int) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()


class Meter(threading.Thread):
    """Measures the memory of some processes all the time."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.pids, self.stopped = pids, threading.Event()
        self.seen: list[list[int]] = []

    def run(self) -> None:
        while not self.stopped.wait(1.0):
            self.seen.append([resident(pid) for pid in self.pids])

    def growth(self) -> list[float]:
        """Memory in the last quarter, relative to that after the warm-up, of each process."""
        count = len(self.seen)
        early, late = self.seen[count // 3 : count // 2], self.seen[3 * count // 4 :]
        return [
            statistics.median(row[i] for row in late) / statistics.median(row[i] for row in early)
            for i in range(len(self.pids))
        ]


def resident(pid: int) -> int:
    """KiB of a process that are in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def holdings(pid: int) -> tuple[int, int]:
    """How many files a process has open, and how many threads it has."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def replaced(run: Path, target: Path) -> None:
    """Let the best model of a run be another one, as training does it."""
    (run / "next").symlink_to(target)
    os.replace(run / "next", run / "best")


@pytest.fixture
def folders(tiny_folder: Path, tmp_path: Path) -> dict[str, Path]:
    made = {task: model_of(task, tiny_folder, tmp_path) for task in (*TASKS, "classify")}
    made["lm"] = model_of("causal_lm", tiny_folder, tmp_path)
    made["chat"] = model_of("instruct", tiny_folder, tmp_path)
    # Another classifier, and half of one.
    other = tmp_path / "other"
    bundle = load(made["classify"], mmap=False)
    for parameter in bundle.model.parameters():
        parameter.data.neg_()
    other.mkdir()
    save(bundle, other)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in other.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    run = tmp_path / "run"
    run.mkdir()
    (run / "best").symlink_to(made["classify"])
    return {**made, "run": run, "other": other, "broken": broken}


@pytest.fixture
def process(folders: dict[str, Path], tiny_folder: Path) -> Iterator[Process]:
    named = [f"{name}={folders[name]}" for name in (*TASKS, "lm", "chat")]
    more = [part for name in (*named, f"bare={tiny_folder}") for part in ("--name", name)]
    first = ("--name", f"mood={folders['run']}", "--watch", "--max-body", 1_000_000)
    served = Process(*first, *more)
    yield served
    served.kill()


@pytest.mark.slow
def test_soak(process: Process, folders: dict[str, Path], tiny_folder: Path) -> None:
    versions = [folders["classify"], folders["other"]]
    expected = Expected(folders, versions, tiny_folder)
    (worker,) = children_of_workers(process)
    pids = [process.process.pid, worker]
    tally = Tally()
    # A first round lets everything be made that is made at its first use.
    clients = [Client(i, process.port, expected, tally) for i in range(CLIENTS)]
    warm = Client(-1, process.port, expected, tally)
    for act in dict.fromkeys(warm.acts):
        act()
    warm.connection.close()
    wait_until(lambda: idle(process), 60)
    before = [holdings(pid) for pid in pids]
    meter = Meter(pids)
    for thread in (*clients, meter):
        thread.start()
    swaps = Counter[str]()
    end, version = time.monotonic() + 60 * MINUTES, 1
    while time.monotonic() + SWAP_EVERY < end:
        time.sleep(SWAP_EVERY)
        # Every third time the new one is broken, and the old one stays.
        if sum(swaps.values()) % 3 == 2:
            replaced(folders["run"], folders["broken"])
            swaps["refused"] += 1
        else:
            replaced(folders["run"], versions[version % 2])
            version += 1
            until_version(process, version)
            swaps["taken over"] += 1
    time.sleep(max(0.0, end - time.monotonic()))
    for thread in (*clients, meter):
        thread.stopped.set()
    for thread in (*clients, meter):
        thread.join(150)
        assert not thread.is_alive()
    wait_until(lambda: idle(process), 60)
    after, growth = [holdings(pid) for pid in pids], meter.growth()
    counts = {**tally.counts, **{f"versions {name}": n for name, n in swaps.items()}}
    print(
        f"\n{MINUTES:g} minutes: {sum(tally.counts.values()):,} requests, {len(tally.wrong)} wrong"
    )
    print("\n".join(f"  {name}: {count:,}" for name, count in sorted(counts.items())))
    print(f"  memory of front and worker, late beside early: {[f'{g:.3f}' for g in growth]}")
    print(f"  KiB at first {meter.seen[0]}, at last {meter.seen[-1]}")
    print(f"  open files and threads before {before}, after {after}")
    assert not tally.wrong, "\n".join(tally.wrong[:20])
    assert all(g < GROWTH for g in growth), growth
    for (files, threads), (files_after, threads_after) in zip(before, after, strict=True):
        assert files_after < files + FILES
        assert threads_after <= threads + POOLED
    code, errors = process.end()
    assert code == 0
    assert "Traceback" not in errors
    assert "error: request" not in errors


def children_of_workers(process: Process) -> list[int]:
    """The processes that compute, without the one that looks after their semaphores."""
    children = children_of(process.process.pid)
    named = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in children]
    return [pid for pid, command in named if b"spawn_main" in command]


def until_version(process: Process, version: int) -> None:
    wait_until(lambda: version_of(process) == version, 60)


def version_of(process: Process) -> int:
    models = process.request("GET", "/readyz").json["models"]
    return int(models["mood"])


def idle(process: Process) -> bool:
    """Whether nothing is asked, and no connection is left but the one that asks this."""
    text = process.request("GET", "/metrics").body.decode()
    return "pretune_queue_length 0.0" in text
