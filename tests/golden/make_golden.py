"""Write down what pretune does today: `python tests/golden/make_golden.py OUT`.

It trains a tiny model for every task and asks every command and every public function about it,
by the command line and the names of `pretune.__all__` alone. OUT/record.json holds the SHA-256 of
all weights, the figures, and what every command printed, without times, memory, speed and paths of
temporary folders. Run on the same machine with the same versions it is the same record, whatever
became of the files of the library; compare_golden.py tells two records apart.
"""

from __future__ import annotations

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PRETUNE_CACHE": "off",
    "COLUMNS": "100",
    "TERM": "dumb",
    "NO_COLOR": "1",
}

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import platform
import re
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cases

#: Keys of JSON that say how long, how fast, how much memory, where and when.
VOLATILE = re.compile(
    r".*seconds.*|.*per_second|peak_memory.*|environment|process_bytes|speed|hours|age|when|time"
    r"|created.*|started|modified|pid|updated|written"
)
#: The same in texts.
TIMES = [
    (re.compile(r"(?m)^step \d.*\n|^.*━.*% reading.*\n"), ""),
    (re.compile(r"(?m)^(│[^│]*\(\d{4}\)[^│]*│[^│]*│)[^│]*│"), r"\1 # │"),
    (
        re.compile(r"[\d,.]+ ?(?:k|M)? (?:tokens|examples|sequences|texts|characters|bytes)/s"),
        "#/s",
    ),
    (re.compile(r"\bin \d[\d.,]* (?:s|ms|min|h)\b"), "in # s"),
    (re.compile(r"\(\d[\d.]* (?:s|min|h)\)"), "(# s)"),
    (re.compile(r"(│(?:training time|examples per second|peak memory)\s*│).*?│"), r"\1 # │"),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?"), "#when"),
    (re.compile(r"│ +[\d.,]+ (?:│ +[\d.]+ (?:s|min|h) *│)$", re.M), "│ # │ # │"),
    (re.compile(r"\bprocess \d+ on \S+"), "process # on #"),
]
NUMBER = re.compile(r"(?<![A-Za-z_#])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


def sha(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def tidy(text: str) -> str:
    """Without what differs from one run of a command to the next."""
    text = text.replace(str(Path.cwd()), "WORK").replace(sys.prefix, "VENV")
    before = text
    for pattern, instead in TIMES:
        text = pattern.sub(instead, text)
    if text != before:  # a figure that was wider made its whole table wider
        text = re.sub(r"[━─]+", "─", text)
        text = re.sub(r"[┳┻╇┬┴┼╈]─?", "┬", text)
        text = re.sub(r" +", " ", text)
    return text


def plain(value: Any) -> Any:
    """JSON-ready, without what is volatile; the public fields of objects, by their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {
            str(key): plain(one)
            for key, one in value.items()
            if not VOLATILE.fullmatch(str(key)) and not str(key).startswith("_")
        }
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        return tidy(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else repr(value)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    return str(value)


def parsed(text: str) -> Any:
    """What a command printed as JSON: one value, or one a line."""
    with contextlib.suppress(ValueError):
        return plain(json.loads(text))
    try:
        return [plain(json.loads(line)) for line in text.splitlines() if line.strip()]
    except ValueError:
        return tidy(text)


class Watched(io.TextIOWrapper):
    """A stream that calls a function when a text is written to it, once."""

    awaited: str | None = None
    then: Callable[[], None]

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.awaited is not None and self.awaited in text:
            self.awaited = None
            self.then()
        return count


def stream(content: str = "") -> Watched:
    return Watched(io.BytesIO(content.encode()), encoding="utf-8", write_through=True)


def told(stream: Watched) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined]


def command(*argv: str, stdin: str = "", stop_at: str | None = None) -> dict[str, Any]:
    """Run `pretune ARGV` in this process.

    Args:
        argv: its words.
        stdin: what it reads.
        stop_at: send it SIGTERM once this is written to standard error.
    """
    out, err = stream(), stream()
    err.awaited, err.then = stop_at, lambda: signal.raise_signal(signal.SIGTERM)
    kept = sys.argv, sys.stdin, sys.stdout, sys.stderr
    typed = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - it has a descriptor
    typed.write(stdin)
    typed.seek(0)
    sys.argv, sys.stdin, sys.stdout, sys.stderr = ["pretune", *argv], typed, out, err
    code: Any = 0
    try:
        # As `python -m pretune`, which stays whatever becomes of the modules.
        runpy.run_module("pretune", run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except Exception as error:
        code = f"{type(error).__name__}: {tidy(str(error))}"
        print(traceback.format_exc(), file=kept[3])
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = kept
        typed.close()
    found: dict[str, Any] = {"argv": tidy(" ".join(argv)), "exit": code}
    said = told(out)
    found["stdout"] = parsed(said) if "--json" in argv else tidy(said)
    found["stderr"] = tidy(told(err))
    return found


def page(path: Path) -> dict[str, Any]:
    """A page by its numbers and by its words, neither styles nor pictures."""
    if not path.is_file():
        return {"missing": True}
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?s)<style>.*?</style>", "", text)
    text = re.sub(r"data:image/[^\"')]*", "", text)
    text = tidy(text)
    numbers = NUMBER.findall(text)
    return {
        "numbers": len(numbers),
        "numbers_sha": sha(" ".join(numbers)),
        "words_sha": sha(NUMBER.sub("#", text)),
    }


def tree(folder: Path, *, skip: Iterable[str] = ()) -> dict[str, Any]:
    """The files below a folder: JSON and texts by what they say, all else by SHA-256."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        if not path.is_file() or any(part in skip for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".json" and path.stat().st_size < 20_000:
            found[name] = plain(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix in (".yaml", ".md", ".csv", ".template"):
            found[name] = tidy(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            found[name] = parsed(path.read_text(encoding="utf-8"))
        elif path.suffix in (".png", ".db", ".html") or ".tfevents." in name:
            found[name.rpartition(".tfevents.")[0] or name] = "there"
        else:
            found[name] = {"sha": sha(path.read_bytes())}
    return found


def weights(folder: Path) -> dict[str, str]:
    """SHA-256 of all tensors that lie in a folder, those of the optimizer too."""
    return {
        str(path.relative_to(folder)): sha(path.read_bytes())
        for path in sorted(folder.glob("*.safetensors"))
    }


class Golden:
    """The record in the making."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {
            name: {} for name in ("weights", "runs", "commands", "api", "mistakes")
        }
        self.seconds: dict[str, float] = {}

    def run(self, key: str, *argv: str, **options: Any) -> dict[str, Any]:
        """Keep what a command does."""
        start = time.perf_counter()
        found = command(*argv, **options)
        self.record["commands"][key] = found
        self.seconds[argv[0]] = self.seconds.get(argv[0], 0.0) + time.perf_counter() - start
        return found

    def api(self, key: str, call: Callable[[], Any]) -> None:
        """Keep what a public function gives."""
        start = time.perf_counter()
        try:
            found = plain(call())
        except Exception as error:
            found = {"raised": type(error).__name__, "said": tidy(str(error))}
        self.record["api"][key] = found
        self.seconds["api"] = self.seconds.get("api", 0.0) + time.perf_counter() - start

    def keep_run(self, name: str, folder: Path) -> None:
        """What a training left."""
        for part in ("best", "last"):
            for file, digest in weights(folder / part).items():
                self.record["weights"][f"{name}/{part}/{file}"] = digest
        self.record["runs"][name] = tree(
            folder, skip=("checkpoints", ".lock", "best", "last", "kernels.json")
        )
        part = "best" if (folder / "best").exists() else "last"
        self.record["runs"][name][part] = {
            file: content
            for file, content in tree(folder / part).items()
            if not file.endswith((".safetensors", "manifest.json", "trainer.json"))
        }

    def prepare(self) -> None:
        """Data, tokenizers, corpora."""
        cases.write_data(Path("data"))
        Path("recipe.yaml").write_text(cases.RECIPE_FILE, encoding="utf-8")
        Path("language.yaml").write_text(cases.LANGUAGE_FILE, encoding="utf-8")
        for name, argv in cases.TOKENIZERS.items():
            self.run(f"tokenizer {name}", "tokenizer", *argv, "-o", name)
            self.record["runs"][f"tokenizer {name}"] = tree(Path(name))
        for name, argv in cases.CORPORA.items():
            self.run(f"prepare {name}", "prepare", *argv, "--workers", "1", "--output", name)
            for path in sorted(Path(name).rglob("*")):
                if path.is_file() and path.suffix != ".json":
                    self.record["weights"][str(path)] = sha(path.read_bytes())
            self.record["runs"][f"prepare {name}"] = tree(Path(name))
        self.run("prepare again", "prepare", *cases.CORPORA["corpus-bpe"], "--output", "corpus-bpe")

    def train(self, name: str) -> None:
        """Train a model and ask it everything."""
        run, folder = cases.RUNS[name], Path("runs") / name
        self.run(f"train {name}", *cases.training(name))
        self.keep_run(name, folder)
        at, data = str(folder), run.data
        self.run(f"evaluate {name}", "evaluate", at, data)
        self.run(f"evaluate {name} json", "evaluate", at, data, "--json")
        if run.ask:
            self.run(f"predict {name}", "predict", at, *run.ask)
            self.run(f"predict {name} json", "predict", at, *run.ask, "--json")
        if not data.startswith("corpus"):
            self.run(f"predict {name} file", "predict", at, "--file", data, "--json")
        self.run(f"report {name}", "report", at, "--explain", "1", "--limit", "8")
        self.record["runs"][name]["report"] = page(folder / "report.html")
        self.run(f"inspect {name}", "inspect", at)
        plan = [*cases.training(name, "runs/planned"), "--no-measure", "--json"]
        self.run(f"plan {name}", "plan", *plan[1:])
        self.uses(name)
        self.ask(name)

    def uses(self, name: str) -> None:
        """The commands that only some tasks have."""
        run, at = cases.RUNS[name], f"runs/{name}"
        lines = "the late parcel arrived\nno good film\n"
        if "generate" in run.uses:
            brief = ("--max-new-tokens", "8")
            self.run(f"generate {name}", "generate", at, *brief, stdin=lines)
            wide = ("--prompt", "the late", "--samples", "2", "--top-k", "9", "--seed", "3")
            self.run(f"generate {name} json", "generate", at, *brief, *wide, "--json")
            beams = ("--beams", "3", "--no-repeat-ngram", "2", "--prompt", "a dog")
            self.run(f"generate {name} beams", "generate", at, *brief, *beams)
        if "chat" in run.uses:
            script = f"{lines}/settings\n/set temperature=0\na dog sings\n/reset\n/unknown\n/help\n"
            self.run(f"chat {name}", "chat", at, "--seed", "1", stdin=script)
            self.run(f"chat {name} greedy", "chat", at, "--temperature", "0", stdin=lines)
        if "prompt" in run.uses:
            asked = ("--shots", "0,1", "--seeds", "2", "--limit", "6", "--quiet")
            self.run(f"prompt {name}", "prompt", at, "data/texts.tsv", *asked)
            scored = ("--score", "pmi", "--json", "--template", "{text}: {answer}")
            self.run(f"prompt {name} json", "prompt", at, "data/texts.tsv", *asked, *scored)
        if "embed" in run.uses:
            out = f"{name}.npy"
            self.run(f"embed {name}", "embed", at, "data/texts.tsv", "--output", out)
            if Path(out).is_file():
                self.record["weights"][f"embed {name}"] = sha(Path(out).read_bytes())
            query = ("--query", "a late parcel", "--top-k", "3")
            self.run(f"embed {name} query", "embed", at, "data/texts.tsv", *query)

    def ask(self, name: str) -> None:
        """The public functions."""
        import pretune

        run, at = cases.RUNS[name], f"runs/{name}"
        try:
            model = pretune.load(at)
        except pretune.PretuneError as error:
            self.record["api"][f"load {name}"] = {"said": tidy(str(error))}
            return
        asked = list(run.asked or run.ask)
        if asked:
            self.api(f"predict {name}", lambda: pretune.predict(model, asked))
        self.api(f"evaluate {name}", lambda: pretune.evaluate(model, run.data))
        if "generate" in run.uses:
            brief = {"max_new_tokens": 6, "temperature": 0.7, "top_p": 0.8, "seed": 2}
            self.api(f"generate {name}", lambda: pretune.generate(model, ["the"], **brief))
        if "embed" in run.uses:
            texts = ["the late parcel", "no film"]
            self.api(f"embed {name}", lambda: pretune.embed(at, texts))
        if "prompt" in run.uses:
            options: dict[str, Any] = {"shots": (0, 2), "seeds": (0,), "limit": 5}
            self.api(f"prompt {name}", lambda: pretune.prompt(model, "data/texts.tsv", **options))

    def resumed(self) -> None:
        """Trainings that are stopped by SIGTERM in the middle and go on: the same in the end."""
        for name in ("classify", "lstm-carried", "mask-nsp", "guarded", "gpt-stored"):
            folder = Path("stopped") / name
            argv = [*cases.training(name, str(folder)), "train.save_every=3"]
            self.run(f"stop {name}", *argv, stop_at="  validation: ")
            self.run(f"resume {name}", "train", "--resume", str(folder))
            for part in ("best", "last"):
                both = [weights(at / part) for at in (folder, Path("runs") / name)]
                for file, digest in both[0].items():
                    self.record["weights"][f"resumed {name}/{part}/{file}"] = digest
                same = {f: d == both[1].get(f) for f, d in both[0].items() if "trainer" not in f}
                self.record["runs"].setdefault("resumed equals uninterrupted", {})[
                    f"{name}/{part}"
                ] = same
        wild = [word.replace("1.5", "0.5") for word in cases.training("guarded", "stopped/wild")]
        self.run("guard gives up", *wild)
        self.run("resume finished", "train", "--resume", "runs/classify")
        self.run("resume changed", "train", "--resume", "runs/classify", "train.epochs=9")

    def others(self) -> None:
        """The commands that are about data, about several runs, or about recipes."""
        self.run("help", "--help")
        self.run("version", "--version")
        self.run("recipes", "recipes")
        for name in re.findall(
            r"^│?\s*([a-z0-9-]+)", self.record["commands"]["recipes"]["stdout"], re.M
        ):
            self.run(f"recipes {name}", "recipes", name)
        for task in TASKS:
            self.run(f"init {task}", "init", task)
        for name in COMMANDS:
            self.run(f"help {name}", name, "--help")
        self.run("describe", "describe", "data/texts.tsv", "--tokenizer", "wordpiece", "--quiet")
        leak = ("--validation", "data/texts.tsv", "--html", "data.html", "--json", "--quiet")
        self.run("describe json", "describe", "data/texts.jsonl", *leak)
        self.record["runs"]["describe page"] = page(Path("data.html"))
        for task, data in (("answer", "questions2"), ("tag", "tags"), ("chat", "dialogues")):
            self.run(
                f"describe {task}", "describe", f"data/{data}.jsonl", "--task", task, "--quiet"
            )
        self.run("describe corpus", "describe", "corpus-bpe", "--quiet")
        self.compares()
        self.run("inspect json", "inspect", "runs/classify", "--json", "--batch", "4")
        self.run("inspect tokens", "inspect", "runs/classify", "--tokens", "the latest parcel")
        map_of = ("--attention", "the late parcel", "-o", "map.png", "--layer", "0", "--head", "1")
        self.run("inspect attention", "inspect", "runs/classify", *map_of)
        self.run("runs", "runs", "runs", "--sort", "loss", "--json")
        # Not the table of runs: it is cut where times have more digits.
        self.run("runs none", "runs", "data")
        schedule = ("data/texts.tsv", "train.schedule=wsd", "--updates", "20")
        self.run("plot-schedule", "plot-schedule", *schedule)
        self.run("plot-schedule json", "plot-schedule", "recipe.yaml", "--json")
        for dtype in ("float32", "bfloat16", "float16"):
            self.run(
                f"convert {dtype}", "convert", "runs/classify", f"as-{dtype}", "--dtype", dtype
            )
            for file, digest in weights(Path(f"as-{dtype}")).items():
                self.record["weights"][f"convert {dtype}/{file}"] = digest
        for name in ("classify", "causal", "lora", "translate", "tag-crf"):
            sent = Path("sent") / name
            dry = ("me/model", "--dry-run", str(sent), "--license", "mit", "--language", "en")
            self.run(f"push {name}", "push", f"runs/{name}", *dry)
            self.record["runs"][f"push {name}"] = tree(sent)
        self.searches()

    def compares(self) -> None:
        """Runs on the same data."""
        few = ("--resamples", "200")
        self.run(
            "compare", "compare", "runs/classify", "runs/yaml", "--data", "data/texts.tsv", *few
        )
        apart = ("--json", "--output", "apart.jsonl")
        self.run("compare json", "compare", "runs/classify", "runs/guarded", *few, *apart)
        if Path("apart.jsonl").is_file():
            self.record["runs"]["compare output"] = parsed(Path("apart.jsonl").read_text())
        self.run("compare tags", "compare", "runs/tag", "runs/tag-crf", *few)
        self.run("compare answers", "compare", "runs/answer", "runs/answer-none", *few)
        self.run("compare unlike", "compare", "runs/classify", "runs/tag", *few)

    def searches(self) -> None:
        """A sweep, a ladder, several seeds."""
        tiny = [
            word for word in cases.training("classify", "runs/sweep")[1:] if "max_steps" not in word
        ]
        over = (
            "--trials",
            "2",
            "--over",
            "train.learning_rate=log:1e-4..1e-2",
            "--quiet",
            "--json",
        )
        self.run("sweep", "sweep", *tiny, "train.max_steps=2", *over)
        rungs = ("--rungs", "ngram,nnlm,gru", "--updates", "2", "--out", "runs/ladder", "--quiet")
        self.run("ladder", "ladder", "data/text.txt", *rungs)
        ladder = Path("runs/ladder")
        if (ladder / "ladder.json").is_file():
            self.record["runs"]["ladder"] = plain(json.loads((ladder / "ladder.json").read_text()))
        for path in sorted(ladder.rglob("best/model.safetensors")):
            self.record["weights"][str(path)] = sha(path.read_bytes())
        seeds = ("train.max_steps=2", "--seeds", "2", "--json", "--quiet")
        self.run("seeds", "train", *tiny[:-1], "output=runs/seeds", *seeds)
        self.api("train", self._trained)
        self.api("resume", lambda: _resume("runs/api"))
        self.api("recipe", _recipe)

    def _trained(self) -> Any:
        import pretune

        tiny = cases.training("classify", "runs/api")[2:]
        found = pretune.train("data/texts.jsonl", tiny, quiet=True)
        self.record["weights"]["api/best"] = sha(
            Path("runs/api/best/model.safetensors").read_bytes()
        )
        return found

    def real(self) -> None:
        """The embedded 22M-parameter model: two updates, and vectors."""
        changes = (
            *("model.from=minilm", "task.max_length=32", "train.max_steps=2", "train.batch_size=4"),
            *("data.validation=0.25", "train.device=cpu", "output=runs/minilm", "--quiet"),
        )
        self.run("train minilm", "train", "data/texts.tsv", *changes)
        for part in ("best", "last"):
            digest = weights(Path("runs/minilm") / part)["model.safetensors"]
            self.record["weights"][f"minilm/{part}"] = digest
        self.run("predict minilm", "predict", "runs/minilm", "where is my parcel?", "--json")
        self.run("embed minilm", "embed", "minilm", "data/texts.tsv", "--query", "a late parcel")
        self.run("inspect minilm", "inspect", "minilm")

    def mistakes(self) -> None:
        """What people get wrong, and what they are told."""
        Path("broken.jsonl").write_text(
            '{"text": "a", "label": "b"}\n{"text": \n', encoding="utf-8"
        )
        Path("empty.tsv").write_text("text\tlabel\n", encoding="utf-8")
        Path("latin.tsv").write_bytes(b"text\tlabel\ncaf\xe9\tbad\n")
        Path("bad.yaml").write_text("task: {name: classify\n", encoding="utf-8")
        for key, argv in MISTAKES.items():
            if argv[0] == "train" and cases.ENCODER[0] in argv and not argv[-1].startswith("out"):
                argv = (*argv, f"output=runs/mistake-{len(self.record['mistakes'])}")
            self.record["mistakes"][key] = command(*argv)


TASKS = (
    *("classify", "multilabel", "regress", "choose", "tag", "answer", "mask_lm", "causal_lm"),
    *("chat", "instruct", "translate"),
)
COMMANDS = (
    *("tokenizer", "train", "plan", "describe", "sweep", "ladder", "runs", "evaluate", "predict"),
    *("report", "compare", "generate", "chat", "prompt", "embed", "inspect", "push", "convert"),
    *("init", "recipes", "plot-schedule", "prepare"),
)
_ENCODER = ("task.max_length=32", *cases.ENCODER)
MISTAKES: dict[str, tuple[str, ...]] = {
    "no such command": ("trian", "x.tsv"),
    "no recipe": ("train",),
    "no such recipe": ("train", "mprc"),
    "no such file": ("train", "data/nothing.tsv"),
    "bad key": ("train", "data/texts.tsv", "train.epoch=2"),
    "bad section": ("train", "data/texts.tsv", "trian.epochs=2"),
    "bad value": ("train", "data/texts.tsv", "train.epochs=many"),
    "negative": ("train", "data/texts.tsv", "train.batch_size=-1"),
    "not key=value": ("train", "data/texts.tsv", "epochs"),
    "bad task": ("train", "data/texts.tsv", "task.name=clasify"),
    "bad column": ("train", "data/texts.tsv", "data.columns.text=body", *_ENCODER),
    "bad label column": ("train", "data/texts.tsv", "data.columns.label=mood", *_ENCODER),
    "no label": ("train", "data/documents.jsonl", *_ENCODER),
    "broken line": ("train", "broken.jsonl", *_ENCODER),
    "empty data": ("train", "empty.tsv", *_ENCODER),
    "wrong encoding": ("train", "latin.tsv", *_ENCODER),
    "broken recipe": ("train", "bad.yaml"),
    "no such model": ("train", "data/texts.tsv", "model.from=nowhere"),
    "too long": ("train", "data/texts.tsv", *cases.ENCODER),
    "bad config": (
        *("train", "data/texts.tsv", "model.from=bert-tiny", "model.tokenizer=wordpiece"),
        *("model.config={hiden_size: 8}", "output=runs/mistake"),
    ),
    "bad metric": ("train", "data/texts.tsv", *_ENCODER, "train.best=bleu"),
    "taken": ("train", "data/texts.tsv", *_ENCODER, "output=runs/classify"),
    "not a run": ("train", "--resume", "data"),
    "lora for classify": ("train", "data/texts.tsv", *_ENCODER, "train.lora={rank: 2}"),
    "evaluate without labels": ("evaluate", "runs/classify", "data/documents.jsonl"),
    "evaluate other labels": ("evaluate", "runs/pairs", "data/texts.tsv"),
    "predict no model": ("predict", "runs/nothing", "a text"),
    "predict one of a pair": ("predict", "runs/pairs", "only one"),
    "predict without a question": ("predict", "runs/answer", "a text"),
    "predict without a mask": ("predict", "runs/mask", "no gap here"),
    "bad set": ("evaluate", "runs/classify", "data/texts.tsv", "--set", "beams=2"),
    "generate by a classifier": ("generate", "runs/classify", "--prompt", "a"),
    "generate too hot": ("generate", "runs/causal", "--prompt", "a", "--temperature", "-1"),
    "chat with a classifier": ("chat", "runs/classify"),
    "prompt a classifier": ("prompt", "runs/classify", "data/texts.tsv"),
    "embed no column": (
        "embed",
        "runs/classify",
        "data/texts.tsv",
        "--column",
        "body",
        "--query",
        "a",
    ),
    "inspect nothing": ("inspect", "runs/nothing"),
    "convert onto": ("convert", "runs/classify", "runs/causal"),
    "tokenizer of nothing": ("tokenizer", "data/nothing.txt", "-o", "tok"),
    "tokenizer onto": ("tokenizer", "data/text.txt", "-o", "bpe"),
    "prepare otherwise": (
        *("prepare", "data/text.txt", "--tokenizer", "wordpiece", "--output", "corpus-bpe"),
    ),
    "bad range": ("sweep", "data/texts.tsv", "--over", "train.learning_rate=log:a..b"),
    "bad rung": ("ladder", "data/text.txt", "--rungs", "transformer"),
    "init nothing": ("init", "poetry"),
    "push badly": ("push", "runs/classify", "no-owner", "--dry-run", "sent/none"),
    "compare one": ("compare", "runs/nothing", "runs/classify"),
    "bad sort": ("runs", "runs", "--sort", "beauty"),
}


def _resume(folder: str) -> Any:
    import pretune

    return pretune.resume(folder, quiet=True)


def _recipe() -> Any:
    import pretune

    recipe = pretune.Recipe.load("mrpc", ["train.epochs=1"])
    return {"yaml": recipe.to_yaml(), "dict": recipe.to_dict()}


def header() -> dict[str, Any]:
    """What the weights depend on besides the library."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "products": _products(),
    }


def _products() -> str:
    """The digest of some products: processors of one name may sum in another order."""
    import torch

    draws = torch.Generator().manual_seed(0)
    digest = hashlib.sha256()
    for depth in (50, 100, 200, 300, 500, 1000):
        for width in (16, 32, 64):
            left = torch.randn(2, depth, generator=draws)
            product = left @ torch.randn(depth, width, generator=draws)
            digest.update(product.numpy().tobytes())
    return digest.hexdigest()


def make(out: Path, only: list[str] | None = None) -> dict[str, Any]:
    """Write OUT/record.json.

    Args:
        out: the folder.
        only: names of some runs; without: all, and everything else.
    """
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    golden, home = Golden(), Path.cwd()
    work = Path(tempfile.mkdtemp(prefix="golden-"))
    try:
        os.chdir(work)
        golden.prepare()
        for name in cases.RUNS if only is None else only:
            golden.train(name)
        if only is None:
            golden.resumed()
            golden.others()
            golden.real()
            golden.mistakes()
    finally:
        os.chdir(home)
        shutil.rmtree(work)
    record = {"header": header(), **golden.record}
    text = json.dumps(record, ensure_ascii=False, indent=0, sort_keys=True)
    (out / "record.json").write_text(text + "\n", encoding="utf-8")
    told = sorted(golden.seconds.items(), key=lambda item: -item[1])[:8]
    print("seconds:", ", ".join(f"{name} {spent:.1f}" for name, spent in told), file=sys.stderr)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for record.json")
    parser.add_argument("--only", nargs="+", choices=list(cases.RUNS), help="some runs alone")
    options = parser.parse_args()
    start = time.perf_counter()
    record = make(options.out, options.only)
    import pretune

    counts = ", ".join(f"{len(record[key])} {key}" for key in record if key != "header")
    print(f"{pretune.__file__}: {counts}, {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
