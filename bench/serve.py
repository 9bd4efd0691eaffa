"""`pretune serve` beside the servers that people write: requests a second, and how long each takes.

    PRETUNE_DATA=FOLDER python bench/serve.py
    PRETUNE_DATA=FOLDER python bench/serve.py --parts classify share --seconds 3 --ours

MiniLM answers real texts, one a request, over connections that are kept; one program asks all
servers alike (`bench/serve_load.py`), from the same two or more cores. Servers that are not asked
are stopped (SIGSTOP), rounds take turns, and all of them have to give the same answers.

    classify    1, 8 and 64 clients with sentences; beside transformers' pipeline behind FastAPI, a
                request at a time, and LitServe with batches
    paragraphs  the same with paragraphs of SQuAD and 64 clients: the model itself takes most then
    embed       the same; beside sentence-transformers behind FastAPI, and infinity-emb where
                `--infinity PYTHON` names a Python that has it
    share       32 clients beside `Predictor` with all texts at hand, and with 32 of them at a time;
                a client alone beside the model's own time
    load        requests at random moments, 70 % of what 64 clients get: how far p99 is from p50
    refuse      more requests than the queue takes: how soon 429 is answered
    generate    8 clients that ask a GPT-2 at random moments for texts of different lengths, beside
                a server that writes for waiting requests together until all of them are done; the
                tokens of some seconds in which all clients ask
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# This process computes as `pretune predict` does; the servers are started as others start them.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from inference import LABELS, LENGTH, read_texts, save_model
from machine import parse, record, times_better

if os.environ["GOMP_SPINCOUNT"] == "10000":
    del os.environ["GOMP_SPINCOUNT"]  # torch has read it

OURS = "pretune"
PARTS = ("classify", "paragraphs", "embed", "share", "load", "refuse", "generate")
CLIENTS = (1, 8, 64)
#: Data sets that the texts come from, in equal parts; paragraphs come from another one.
DATA, PARAGRAPHS = ("sst2", "emotion"), "squad"
#: Seconds at the beginning of each run that are not counted.
WARM = 0.7
HERE = Path(__file__).parent
#: Places in the queue of the server that is asked for more, and how many ask it.
QUEUE, TOO_MANY = 32, 96
#: Clients of the generator, and mean seconds between an answer and a client's next request.
WRITERS, PAUSE = 8, 0.25
#: Seconds before their tokens are counted, and texts that each of them asks for in turn.
WARM_WRITING, WRITES = 6.0, 16
#: Clients whose answers are compared with those of the model alone.
SHARED = 32


class Server:
    """A server in a process of its own, stopped while it is not asked."""

    def __init__(self, name: str, command: Sequence[str], port: int, folder: Path) -> None:
        self.name, self.port = name, port
        self._log = (folder / f"{re.sub('[^a-z]+', '-', name)}-{port}.log").open("wb")
        # A group of its own, in the session of this process: should this one be killed, the system
        # ends what is stopped in a group that nobody is left to wake.
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, process_group=0
        )

    def wait(self, request: str, seconds: float = 120) -> None:
        """Wait until it answers a request with 200; a RuntimeError if it does not."""
        head, _, body = request.partition("\r\n\r\n")
        url = f"http://127.0.0.1:{self.port}{head.split()[1]}"
        kind = {"Content-Type": "application/json"}
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            try:
                asked = urllib.request.Request(url, body.encode(), kind)
                with urllib.request.urlopen(asked, timeout=60):  # noqa: S310
                    return
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise RuntimeError(f"{self.name}: {error.read().decode()}") from None
            except OSError:
                pass
            time.sleep(0.1)
        text = Path(self._log.name).read_text(encoding="utf-8", errors="replace").strip()
        raise RuntimeError(f"{self.name} does not answer: {(text.splitlines() or ['?'])[-1]}")

    def sleep(self) -> None:
        """Stop all of its processes."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let its processes go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self.wake()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def cpu_seconds(self) -> dict[str, float]:
        """Seconds that its processes computed, of the first and of its children."""
        first = self._process.pid
        lists = Path(f"/proc/{first}/task").glob("*/children")
        children = [int(child) for text in lists for child in text.read_text().split()]
        return {"front": _cpu(first), "workers": sum(map(_cpu, children))}


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def post(path: str, body: Any) -> str:
    """A request of HTTP."""
    text = json.dumps(body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Figures:
    """What the clients of a server saw."""

    rate: float  # answers of 200 a second
    times: np.ndarray  # milliseconds of each of them
    refused: np.ndarray  # milliseconds of each answer of 429
    bodies: dict[int, Any]
    seconds: float
    cpu: dict[str, float] = field(default_factory=dict)  # milliseconds a request
    spans: Sequence[tuple[int, float, float]] = ()  # see `serve_load.Seen`

    def percentile(self, share: float) -> float:
        """The milliseconds within which so many percent were answered."""
        return float(np.percentile(self.times, share)) if len(self.times) else float("nan")


def ask(server: Server, requests: Sequence[str], **plan: Any) -> Figures:
    """Let clients ask a server, which sleeps before and after."""
    server.wake()
    before = server.cpu_seconds()
    plan = {"warm": WARM, **plan, "port": server.port, "requests": list(requests)}
    done = subprocess.run(
        [sys.executable, "-I", str(HERE / "serve_load.py")],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
    )
    after = server.cpu_seconds()
    server.sleep()
    if done.returncode:
        raise SystemExit(f"{server.name}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    seen = json.loads(done.stdout)
    other = {status for status in seen["times"] if status not in ("200", "429")}
    if other or seen["lost"]:
        raise SystemExit(f"{server.name}: answers of {sorted(other)}, {seen['lost']} lost")
    times = 1000 * np.array(seen["times"].get("200", []))
    bodies = {int(number): json.loads(body) for number, body in seen["bodies"].items()}
    # With the seconds before the clock starts, in which it computed, too.
    asked = max(1, len(times)) * (1 + plan["warm"] / max(seen["seconds"], 1e-9))
    cpu = {part: 1000 * (after[part] - before[part]) / asked for part in after}
    return Figures(
        rate=len(times) / seen["seconds"],
        times=times,
        refused=1000 * np.array(seen["times"].get("429", [])),
        bodies=bodies,
        seconds=seen["seconds"],
        cpu={**cpu, "clients": 1000 * seen["cpu"] / max(1, len(times))},
        spans=seen["spans"],
    )


@dataclass
class Engine:
    """A server, what to ask it for a text, and how to read what it answers."""

    name: str
    command: Callable[[int], list[str]]
    request: Callable[[str], str]
    read: Callable[[Any], np.ndarray]


class Bench:
    """Everything that is measured on one machine.

    Args:
        options: of the command line.
        place: a folder for models and logs.
    """

    def __init__(self, options: argparse.Namespace, place: Path, stack: ExitStack) -> None:
        self.options, self.place, self.stack = options, place, stack
        count = -(-options.texts // len(DATA))
        texts = [str(text) for name in DATA for text in read_texts(name, count)]
        random.Random(0).shuffle(texts)  # noqa: S311
        self.texts = texts
        self.paragraphs = [str(text) for text in read_texts(PARAGRAPHS, options.texts // 2)]
        self.folder, self.task_folder = place / "minilm", place / "labels"
        self.servers: dict[str, Server] = {}
        self.missing: dict[str, str] = {}

    # Engines.

    def prepare(self) -> None:
        """Save the classifier, for others and with its task for us."""
        from pretune.bundle.bundle import load, save
        from pretune.tasks.classification.classify import Classify, ClassifyOptions

        save_model(self.folder)
        self.task_folder.mkdir()
        task = Classify(ClassifyOptions(max_length=LENGTH), LABELS)
        save(replace(load(self.folder), task=task), self.task_folder)

    def ours(self, *more: str) -> Callable[[int], list[str]]:
        """The command that serves with pretune."""
        start = [sys.executable, "-m", "pretune", "serve", "--precision", "float32", *more]
        return lambda port: [*start, "--port", str(port)]

    def peer(self, kind: str, folder: Path) -> Callable[[int], list[str]]:
        """The command that serves as others do."""
        return lambda port: [
            *(sys.executable, str(HERE / "serve_peers.py"), kind, str(folder), str(port))
        ]

    def classifiers(self) -> list[Engine]:
        """The servers of the classifier."""
        names = ["--name", f"labels={self.task_folder}", "--name", "vectors=minilm"]
        mine = Engine(
            OURS,
            self.ours(*names),
            lambda text: post("/v1/predict", {"model": "labels", "inputs": [text]}),
            lambda body: np.array([body["answers"][0]["scores"][label] for label in LABELS]),
        )

        def scores(body: Any) -> np.ndarray:
            rows = body[0] if isinstance(body[0], list) else body
            by_label = {row["label"]: row["score"] for row in rows}
            return np.array([by_label[label] for label in LABELS])

        peers = {"pipeline, FastAPI": "pipeline"}
        if self._has("litserve"):
            peers["LitServe"] = "litserve"
        plain = lambda text: post("/predict", {"text": text})  # noqa: E731
        return [
            mine,
            *(
                Engine(name, self.peer(kind, self.folder), plain, scores)
                for name, kind in peers.items()
            ),
        ]

    def embedders(self) -> list[Engine]:
        """The servers of sentence vectors."""
        from pretune.checkpoints.source import find_source

        minilm = Path(find_source("minilm"))
        first = self.classifiers()[0]  # the same process serves both
        openai = lambda text: post("/v1/embeddings", {"model": "vectors", "input": text})  # noqa: E731
        vector = lambda body: np.array(body["data"][0]["embedding"])  # noqa: E731
        engines = [replace(first, request=openai, read=vector)]
        if self._has("sentence_transformers"):
            plain = lambda text: post("/predict", {"text": text})  # noqa: E731
            name = "sentence-transformers, FastAPI"
            engines.append(Engine(name, self.peer("sentences", minilm), plain, np.array))
        if self.options.infinity:
            start = [self.options.infinity, "-m", "infinity_emb", "v2", "--model-id", str(minilm)]
            start += ["--engine", "torch", "--device", "cpu", "--dtype", "float32"]
            start += ["--no-bettertransformer", "--host", "127.0.0.1", "--served-model-name", "v"]
            engines.append(
                Engine(
                    "infinity-emb",
                    lambda port: [*start, "--port", str(port)],
                    lambda text: post("/embeddings", {"model": "v", "input": [text]}),
                    vector,
                )
            )
        return engines

    def _has(self, package: str) -> bool:
        there = importlib.util.find_spec(package) is not None
        if not there:
            self.missing[package] = f"pip install {package.replace('_', '-')}"
        return there

    def start(self, engine: Engine) -> Server | None:
        """The engine's server, which is started when it is first asked for; None if it cannot."""
        if engine.name in self.servers:
            return self.servers[engine.name]
        port = free_port()
        server = Server(engine.name, engine.command(port), port, self.place)
        self.stack.callback(server.close)
        try:
            server.wait(engine.request(self.texts[0]))
        except RuntimeError as error:
            if engine.name.startswith(OURS):
                raise
            self.missing[engine.name] = str(error)
            return None
        server.sleep()
        self.servers[engine.name] = server
        return server

    def must(self, engine: Engine) -> Server:
        """The server of an engine of ours, which has to start."""
        server = self.start(engine)
        if server is None:
            raise SystemExit(self.missing[engine.name])
        return server

    # What is measured.

    def beside(
        self,
        what: str,
        engines: Sequence[Engine],
        goals: Mapping[str, float],
        texts: Sequence[str],
        numbers: Sequence[int] = CLIENTS,
    ) -> None:
        """Ask all engines, with each number of clients."""
        if self.options.ours:
            engines = engines[:1]
        started = [(engine, server) for engine in engines if (server := self.start(engine))]
        for clients in numbers:
            seen: dict[str, list[Figures]] = {engine.name: [] for engine, _ in started}
            for number in range(self.options.rounds):
                for engine, server in started if number % 2 == 0 else reversed(started):
                    requests = [engine.request(text) for text in texts]
                    plan = {"clients": clients, "seconds": self.options.seconds}
                    seen[engine.name].append(ask(server, requests, **plan))
            self._compare(what, started, seen)
            self._show(f"{what}, {clients} clients", seen, goals)

    def _compare(
        self, what: str, started: Sequence[tuple[Engine, Server]], seen: Mapping[str, list[Figures]]
    ) -> None:
        """Stop if two engines answered the same text differently."""
        (first, _), *others = started
        mine = {k: first.read(body) for f in seen[first.name] for k, body in f.bodies.items()}
        for engine, _ in others:
            for figures in seen[engine.name]:
                for number, body in figures.bodies.items():
                    if number in mine:
                        apart = float(np.abs(engine.read(body) - mine[number]).max())
                        if apart > 1e-3:
                            raise SystemExit(f"{what}: {engine.name} is {apart:.1e} from {OURS}")

    def _show(
        self, what: str, seen: Mapping[str, list[Figures]], goals: Mapping[str, float]
    ) -> None:
        """Print a table of rates and percentiles, and record them."""
        columns: dict[str, Callable[[Figures], float]] = {"requests/s": lambda f: f.rate}
        for share in (50, 95, 99):
            columns[f"p{share} ms"] = lambda f, share=share: f.percentile(share)  # type: ignore[misc]
        values = {
            name: {engine: [read(f) for f in each] for engine, each in seen.items()}
            for name, read in columns.items()
        }
        print(f"\n{what:<36}" + "".join(f"{name:>12}" for name in columns) + f"{'pretune is':>12}")
        for engine in seen:
            middle = {name: float(np.median(values[name][engine])) for name in columns}
            cells = "".join(f"{value:>12,.1f}" for value in middle.values())
            ratio = ""
            if engine != OURS:
                mine = float(np.median(values["requests/s"][OURS]))
                ratio = f"{times_better(mine, middle['requests/s'], lower=False):>11.2f}x"
                ratio += f"  (goal {goals[engine]:g}x)" if engine in goals else ""
            print(f"{engine:<36}{cells}{ratio}", flush=True)
        print(f"{OURS}: {_spent(seen[OURS])}")
        for name, each in values.items():
            unit = "requests/s" if name == "requests/s" else "ms"
            shown = what if unit == "requests/s" else f"{what}: {name.removesuffix(' ms')}"
            record(shown, unit, each, OURS, lower=unit == "ms")

    def share(self) -> None:
        """Beside the same model without a server: all texts at once, and one by one."""
        from clock import settle

        from pretune.bundle.bundle import load
        from pretune.inference.predict import Predictor

        engine = self.classifiers()[0]
        server, predictor = self.must(engine), Predictor(load(self.task_folder), device="cpu")

        def answers(texts: Sequence[str]) -> object:
            return predictor.predict(predictor.records(list(texts)))

        def offline(size: int) -> float:
            settle(answers, self.texts[:8])
            began, count = time.perf_counter(), 0
            while time.perf_counter() < began + self.options.seconds:
                for start in range(0, len(self.texts), size):
                    answers(self.texts[start : start + size])
                count += len(self.texts)
            return count / (time.perf_counter() - began)

        requests = [engine.request(text) for text in self.texts]
        sizes = {"all at hand": len(self.texts), "32 at a time": SHARED}
        rates: dict[str, list[float]] = {"32 clients": [], **{name: [] for name in sizes}}
        alone: dict[str, list[float]] = {"a client": [], "the model": []}
        shared: list[Figures] = []
        for _ in range(self.options.rounds):
            shared.append(ask(server, requests, clients=SHARED, seconds=self.options.seconds))
            rates["32 clients"].append(shared[-1].rate)
            for name, size in sizes.items():
                rates[name].append(offline(size))
            figures = ask(server, requests, clients=1, seconds=self.options.seconds)
            alone["a client"].append(figures.percentile(50))
            settle(answers, self.texts[:8])
            alone["the model"].append(float(np.median(list(_times(answers, self.texts)))))
        print(f"\n32 clients: {np.median(rates['32 clients']):,.0f} requests/s")
        for name, size in sizes.items():
            part = np.median(np.divide(rates["32 clients"], rates[name]))
            goal = "; goal 80%" if size > SHARED else ""
            print(
                f"    {part:.0%} of `Predictor` with {size} texts at hand "
                f"({np.median(rates[name]):,.0f} texts/s{goal})"
            )
        print(f"    {_spent(shared)}")
        more = np.median(np.subtract(alone["a client"], alone["the model"]))
        print(
            f"a client alone: p50 {np.median(alone['a client']):.2f} ms, "
            f"{more:.2f} ms more than `Predictor` with that text (goal 2 ms)",
            flush=True,
        )
        record("32 clients and offline", "texts/s", rates, "32 clients")
        record("a client alone, and the model", "ms", alone, "a client", lower=True)

    def load(self) -> None:
        """Requests at random moments, 70 % of what 64 clients get."""
        engine = self.classifiers()[0]
        server = self.must(engine)
        requests = [engine.request(text) for text in self.texts]
        ratios: list[float] = []
        for number in range(self.options.rounds):
            most = ask(server, requests, clients=64, seconds=self.options.seconds).rate
            plan = {"rate": 0.7 * most, "clients": 64, "seconds": 2 * self.options.seconds}
            figures = ask(server, requests, **plan, seed=number)
            ratios.append(figures.percentile(99) / figures.percentile(50))
            print(
                f"\n70% of {most:,.0f} requests/s, at random: {figures.rate:,.0f} a second; "
                f"p50 {figures.percentile(50):.1f} ms, p99 {figures.percentile(99):.1f} ms: "
                f"{ratios[-1]:.1f} times (goal 3)",
                flush=True,
            )
        record("70% load: p99 / p50", "times", {OURS: ratios}, OURS, lower=True)

    def refuse(self) -> None:
        """More requests than the queue takes."""
        engine = self.classifiers()[0]
        small = self.ours("--name", f"labels={self.task_folder}", "--max-queue", str(QUEUE))
        engine = replace(engine, name=f"{OURS} with a small queue", command=small)
        server = self.must(engine)
        requests = [engine.request(text) for text in self.texts]
        figures = ask(server, requests, clients=TOO_MANY, seconds=self.options.seconds)
        if not len(figures.refused):
            raise SystemExit("nothing was refused")
        p50, p99, most = (float(np.percentile(figures.refused, share)) for share in (50, 99, 100))
        print(
            f"\n{TOO_MANY} clients, {QUEUE} places in the queue: {len(figures.refused):,} answers "
            f"of 429 after p50 {p50:.1f}, p99 {p99:.1f}, at most {most:.1f} ms (goal 50); "
            f"{figures.rate:,.0f} requests/s answered meanwhile",
            flush=True,
        )
        record("over the queue's limit: 429, p99", "ms", {OURS: [p99]}, OURS, lower=True)

    def generate(self) -> None:
        """Texts of different lengths, asked for at random moments."""
        folder = self.place / "gpt2"
        tokenizer = save_generator(folder, self.options.layers)
        asked = self._prompts(tokenizer)
        # The end of a text is banned on both sides: each has as many tokens as it was asked for.
        greedy = {"temperature": 0, "logit_bias": {str(tokenizer.get_vocab_size() - 1): -100}}
        mine = [
            post("/v1/completions", {"prompt": ids, "max_tokens": n, **greedy}) for ids, n in asked
        ]
        theirs = [post("/predict", {"ids": ids, "max_tokens": n}) for ids, n in asked]
        ours, other = f"{OURS}, generate", "transformers, whole requests"
        sides = [
            (
                Engine(
                    ours,
                    self.ours("--name", f"lm={folder}"),
                    lambda text: mine[0],
                    lambda body: np.array(body["usage"]["completion_tokens"]),
                ),
                mine,
            ),
            (
                Engine(
                    other,
                    self.peer("generate", folder),
                    lambda text: theirs[0],
                    lambda body: np.array(body["tokens"]),
                ),
                theirs,
            ),
        ]
        rates: dict[str, list[float]] = {}
        waits: dict[str, list[float]] = {}
        for engine, requests in sides[: 1 if self.options.ours else 2]:
            server = self.start(engine)
            if server is None:
                continue
            plan = {"clients": WRITERS, "own_order": True, "pause": PAUSE, "warm": WARM_WRITING}
            figures = ask(server, requests, **plan, seconds=self.options.writing)
            wrong = [n for n, b in figures.bodies.items() if engine.read(b) != asked[n][1]]
            if wrong:
                raise SystemExit(f"{engine.name}: answers of another length: {wrong}")
            name = OURS if engine.name == ours else engine.name
            rates[name] = [_tokens(figures, [n for _, n in asked]) / figures.seconds]
            waits[name] = [figures.percentile(50)]
        print(
            f"\n{WRITERS} clients, texts of 8 to {self.options.new_tokens} tokens, "
            f"{self.options.writing:g} s in which all of them ask"
        )
        for name, (rate,) in rates.items():
            ratio = "" if name == OURS else f"   {rates[OURS][0] / rate:.2f}x (goal 2x)"
            print(f"{name:<36}{rate:>10,.1f} tokens/s   p50 {waits[name][0]:,.0f} ms{ratio}")
        record("generate, 8 clients", "tokens/s", rates, OURS)
        record("generate, 8 clients: p50", "ms", waits, OURS, lower=True)

    def _prompts(self, tokenizer: Any) -> list[tuple[list[int], int]]:
        """Pieces of Shakespeare, and how many tokens are wanted after each."""
        source = Path(os.environ["PRETUNE_DATA"]) / "tiny-shakespeare" / "input.txt"
        text, chance = source.read_text("utf-8"), random.Random(1)  # noqa: S311
        asked = []
        for _ in range(WRITERS * WRITES):
            start = chance.randrange(len(text) - 1000)
            ids = tokenizer.encode(text[start : start + chance.randrange(40, 400)]).ids
            asked.append((ids, chance.randrange(8, self.options.new_tokens)))
        return asked


def _spent(seen: Sequence[Figures]) -> str:
    """What a request costs, in a sentence."""
    cpu = {part: np.median([figures.cpu[part] for figures in seen]) for part in seen[0].cpu}
    spent = ", ".join(f"{part} {value:.2f}" for part, value in cpu.items())
    return f"CPU milliseconds a request: {spent}"


def _tokens(figures: Figures, counts: Sequence[int]) -> float:
    """The tokens of the seconds that were counted.

    Of an answer that was asked for before them, or came after them, those count that it has at an
    even pace.
    """
    spans = figures.spans
    parts = [
        counts[number] * max(0.0, min(end, figures.seconds) - max(start, 0.0)) / (end - start)
        for number, start, end in spans
    ]
    return sum(parts)


def _times(answers: Callable[[Sequence[str]], object], texts: Sequence[str]) -> Iterator[float]:
    """Milliseconds of each text, asked by itself."""
    for text in texts:
        began = time.perf_counter()
        answers([text])
        yield 1000 * (time.perf_counter() - began)


def save_generator(folder: Path, layers: int) -> Any:
    """Save a GPT-2 with random weights and a vocabulary of Shakespeare; return its tokenizer."""
    import torch
    import transformers
    from tokenizers import ByteLevelBPETokenizer

    end = "<|endoftext|>"
    tokenizer = ByteLevelBPETokenizer()
    source = Path(os.environ["PRETUNE_DATA"]) / "tiny-shakespeare" / "input.txt"
    tokenizer.train([str(source)], vocab_size=8000, show_progress=False)
    tokenizer.add_special_tokens([end])
    size = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=size,
        n_positions=512,
        n_layer=layers,
        bos_token_id=size - 1,
        eos_token_id=size - 1,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token=end, bos_token=end
    ).save_pretrained(folder)
    return tokenizer


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--texts", type=int, default=510, help="of all data sets together")
    parser.add_argument("--seconds", type=float, default=4, help="of each run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--writing", type=float, default=24, help="seconds of generation")
    parser.add_argument("--new-tokens", type=int, default=128, help="of a text, at most")
    parser.add_argument("--layers", type=int, default=12, help="of the GPT-2")
    parser.add_argument("--infinity", help="a Python that has infinity-emb")
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit(
            "set PRETUNE_DATA to a folder with "
            + ", ".join((*DATA, PARAGRAPHS, "tiny-shakespeare"))
        )
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        bench = Bench(options, Path(place), stack)
        bench.prepare()
        goals = {"pipeline, FastAPI": 3, "LitServe": 2, "infinity-emb": 1.5}
        parts: dict[str, Callable[[], None]] = {
            "classify": lambda: bench.beside("classify", bench.classifiers(), goals, bench.texts),
            "paragraphs": lambda: bench.beside(
                "classify paragraphs", bench.classifiers(), {}, bench.paragraphs, CLIENTS[-1:]
            ),
            "embed": lambda: bench.beside("embed", bench.embedders(), goals, bench.texts),
            "share": bench.share,
            "load": bench.load,
            "refuse": bench.refuse,
            "generate": bench.generate,
        }
        for name in options.parts:
            parts[name]()
        for name, why in bench.missing.items():
            print(f"without {name}: {why}")


if __name__ == "__main__":
    main()
