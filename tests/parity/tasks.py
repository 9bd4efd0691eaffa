"""Every family with every task that it can carry, on tiny random models: what works, and how far
from transformers.

python tests/parity/tasks.py [--docs] [--only COLUMN ...] [--families FAMILY ...]

A cell is a largest absolute difference, `yes` where there is nothing to compare with, or `refused`;
why comes after the tables. `opens`: transformers' model of the trained run. `serve`: the answers of
the service and of `predict`. `report`: the page of the run, with an explained answer. `LoRA`: an
adapter beside its base, and the run with it merged in. `int8`: answers in 8 bits and in float32.
`ONNX`: the exported graph and the model, as a share of the largest output. `embed`:
sentence-transformers with the same folder.

`--docs` puts the cells into the tables of docs/checkpoints.md and of its translation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from typer.testing import CliRunner

import pretune
from pretune.bundle.adapted import with_adapter
from pretune.bundle.bundle import ADAPTER, Bundle, load
from pretune.cli.app import app
from pretune.data.records import Records
from pretune.decoding.decoding import Decoding
from pretune.errors import PretuneError
from pretune.export.onnx_files import export_onnx
from pretune.inference.embed import Embedder
from pretune.inference.generate import TextGenerator
from pretune.inference.predict import Predictor
from pretune.models.families import FAMILIES
from pretune.serving.held_model import HeldModel, PackedWork
from pretune.serving.jobs import Ask
from pretune.serving.options import ServeOptions
from pretune.tokenizers.classes import INPUTS
from pretune.tokenizers.train import train_tokenizer
from tests.parity.families import (
    LENGTHS,
    PAIRS,
    SIZES,
    difference,
    our_logits,
    published,
    their_logits,
)
from tests.tasks.every_task import CASES, write

#: Tasks, with the heads that they need.
TASKS = {
    "classify": "sequence_classification",
    "regress": "sequence_classification",
    "choose": "multiple_choice",
    "tag": "token_classification",
    "answer": "question_answering",
    "mask_lm": "masked_lm",
    "replaced_token": "replaced_tokens",
    "causal_lm": "causal_lm",
    "translate": "translation",
}
COLUMNS = ("train", "opens", "predict", "serve", "report", "LoRA", "distil", "int8", "ONNX")
#: What a family can without a task.
OTHERS = ("embed", "generate")
#: The pages with the tables.
PAGES = [Path(__file__).parents[2] / "docs" / name for name in ("", "zh-CN")]
#: Longer than windows; shorter than the positions.
ROWS, LENGTH, POSITIONS = 12, 32, 96


def texts(count: int = ROWS) -> list[str]:
    """Texts of which all data are made."""
    return [
        f"the film no. {i} was {'good' if i % 2 else 'bad'}, said a man of the"
        for i in range(count)
    ]


def base_folder(family: str, folder: Path) -> Path:
    """A tiny random model of transformers, with a tokenizer."""
    decodes = family in PAIRS or "causal_lm" in FAMILIES[family].heads
    with contextlib.redirect_stderr(io.StringIO()):
        rows = [str(v) for name in TASKS for row in CASES[name].rows(ROWS) for v in row.values()]
        kind, size = ("bpe", 300) if decodes else ("wordpiece", 200)
        tokenizer = train_tokenizer([*rows, *texts()] * 2, kind, size)
    names = FAMILIES[family].backbone.config_class.names
    positions = names.get("max_position_embeddings", "max_position_embeddings")
    heads = FAMILIES[family].heads
    head = next(h for h in ("translation", "causal_lm", "masked_lm", "backbone") if h in heads)
    entries: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, positions: POSITIONS}
    if family in PAIRS:
        end = tokenizer.end_id
        entries |= {"eos_token_id": end, "forced_eos_token_id": end}
    theirs = published(family, head, **entries)
    theirs.save_pretrained(folder)
    if getattr(theirs.config, "type_vocab_size", 0) < 2:  # it reads no segments
        tokenizer.settings[INPUTS] = ["input_ids", "attention_mask"]
    if decodes and tokenizer.end_id is not None:  # sentence-transformers pads
        tokenizer.special.setdefault("pad_token", tokenizer.tokens([tokenizer.end_id])[0])
    tokenizer.save(folder)
    return folder


def recipe(task: str, base: Path, folder: Path) -> dict[str, Any]:
    """Two updates of a task."""
    data = write(CASES[task].rows(ROWS), folder / f"{task}.jsonl")
    options: dict[str, Any] = {"name": task, "max_length": LENGTH}
    if task == "answer":
        options |= {"doc_stride": 8, "max_length": 80}
    return {
        "task": options,
        "data": {"train": str(data), "validation": str(data)},
        "model": {"from": str(base)},
        "train": {
            "max_steps": 2,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "warmup": 0,
            "device": "cpu",
            "precision": "float32",
        },
        "output": str(folder / task),
    }


def cell(work: Callable[[], str]) -> str:
    """The text of a cell: the result, or why there is none."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return work()
    except PretuneError as error:
        return f"refused: {error.message.rpartition(': ')[2]}"
    except Exception as error:  # a mistake of ours, which the table is to show
        return f"FAILS: {type(error).__name__}: {str(error)[:60]}"


def numbers(value: Any) -> list[float]:
    """All floats of an answer, in their order."""
    if isinstance(value, float):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [n for item in value for n in numbers(item)] if isinstance(value, list | tuple) else []


def asked(task: str) -> Records:
    """The first records, as a model of the task is asked about them."""
    rows = CASES[task].records(6)
    if task == "mask_lm":
        return Records([{"text": f"the [MASK] {r['text']}"} for r in rows.rows], "some.jsonl")
    return rows


def answers(bundle: Bundle, task: str, precision: str = "float32") -> list[list[float]]:
    """The numbers of a model's answers to the first records."""
    rows = asked(task)
    given = Predictor(bundle, device="cpu", precision=precision).predict(rows)
    return [numbers(answer.to_dict()) for answer in given]


def furthest(one: list[list[float]], two: list[list[float]]) -> str:
    """The largest difference of two models' answers; another answer is `another`."""
    if [len(a) for a in one] != [len(b) for b in two]:
        return "another"
    pairs = zip(itertools.chain(*one), itertools.chain(*two), strict=True)
    return f"{max((abs(x - y) for x, y in pairs), default=0.0):.0e}"


def held(run: Path, task: str) -> str:
    """The answers of the model as the service holds it, beside those of `predict`."""
    how: dict[str, Any] = {"device": "cpu", "precision": "float32"}
    model = HeldModel("m", str(run), 1, ServeOptions(models=(("m", str(run)),), **how))
    own = model.bundle.task
    assert own is not None
    rows = [{name: row[name] for name in own.inputs} for row in asked(task).rows]
    work = model.prepare(Ask(1, "m", "predict", rows, {}, float("inf")), 0.0)
    assert isinstance(work, PackedWork)
    given = work.finish(list(work.lane.run(work.features)))
    expected = Predictor(load(run), **how).predict(asked(task))
    # All that is no number has to be equal: labels, entities, tokens.
    served = [{k: v for k, v in answer.items() if k not in own.inputs} for answer in given]
    wanted = [answer.top(None).to_dict() for answer in expected]
    if words(served) != words(wanted):
        return "another"
    return furthest([numbers(answer) for answer in served], [numbers(answer) for answer in wanted])


def reported(run: Path) -> str:
    """The page about a run, with one explained answer."""
    done = CliRunner().invoke(app, ["report", str(run), "--explain", "1", "--device", "cpu"])
    if done.exit_code == 0:
        return "yes" if (run / "report.html").stat().st_size > 10_000 else "no"
    if done.exit_code == 2:
        raise PretuneError(" ".join(done.stderr.split()))
    raise done.exception or RuntimeError(done.output)


def words(value: Any) -> Any:
    """An answer without its floats."""
    if isinstance(value, dict):
        return {name: words(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [words(item) for item in value]
    return None if isinstance(value, float) else value


def opened(run: Path) -> str:
    """Transformers' model of a run, beside ours."""
    bundle = load(run / "best")
    assert bundle.task is not None
    head = bundle.task.head
    kind = getattr(transformers, bundle.family.heads[head].architecture)
    theirs = kind.from_pretrained(run / "best", attn_implementation="eager").eval()
    torch.manual_seed(0)
    ids = [torch.randint(5, 150, (length,)).tolist() for length in LENGTHS]
    with torch.no_grad():
        expected = their_logits(theirs, head, ids)
        if head == "replaced_tokens":  # of a class for the classes of tokens: one column
            expected = [logits.reshape(len(logits)) for logits in expected]
        found = difference(our_logits(bundle.model, head, ids), expected)
    return f"{found:.0e}"


def adapted(task: str, base: Path, folder: Path) -> str:
    """An adapter beside its base, and the run that has it merged in."""
    values = recipe(task, base, folder)
    values["train"]["lora"] = {"rank": 2, "targets": ["attention.qkv", "feed_forward.up"]}
    values["output"] = str(folder / f"{task}-lora")
    run = Path(pretune.train(values, quiet=True).folder)
    head = TASKS[task]
    whole = head in ("masked_lm", "causal_lm", "translation")
    beside = with_adapter(load(base) if whole else load(base, bare=True), run / "best" / ADAPTER)
    return furthest(answers(beside, task), answers(load(run), task))


def distilled(task: str, base: Path, folder: Path) -> str:
    """A student that learns from the run."""
    values = recipe(task, base, folder)
    values |= {"teacher": {"from": str(folder / task)}, "output": str(folder / f"{task}-student")}
    pretune.train(values, quiet=True)
    return "yes"


def row(family: str, task: str, base: Path, folder: Path, columns: Sequence[str]) -> dict[str, str]:
    """The cells of a family and a task; `train` is always among them."""
    run = folder / task
    exported = folder / f"{task}-onnx"

    def trained() -> str:
        pretune.train(recipe(task, base, folder), quiet=True)
        return "yes"

    cells = {"train": cell(trained)}
    if cells["train"] != "yes":
        return cells | dict.fromkeys(COLUMNS[1:], "")
    works: dict[str, Callable[[], str]] = {
        "opens": lambda: opened(run),
        "predict": lambda: "yes" if len(answers(load(run), task)) == 6 else "no",
        "serve": lambda: held(run, task),
        "report": lambda: reported(run),
        "LoRA": lambda: adapted(task, base, folder),
        "distil": lambda: distilled(task, base, folder),
        "int8": lambda: furthest(answers(load(run), task), answers(load(run), task, "int8")),
        "ONNX": lambda: f"{export_onnx(run, exported).difference.largest:.0e}",
    }
    return cells | {name: cell(work) for name, work in works.items() if name in columns}


def embedded(base: Path) -> str:
    """Vectors beside those of sentence-transformers with the mean of all tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    ours = Embedder(load(base, bare=True), pooling="mean", normalize=False, device="cpu")
    mine = ours.embed(texts(4))
    part = Transformer(str(base), max_seq_length=ours.max_length)
    theirs = SentenceTransformer(
        modules=[part, Pooling(part.get_word_embedding_dimension(), "mean")], device="cpu"
    )
    # One at a time: a decoder's tokenizer may have no token to pad with.
    expected = np.stack([theirs.encode(text) for text in texts(4)])
    return f"{np.abs(mine - expected).max():.0e}"


def generated(base: Path) -> str:
    """The likeliest continuation, by both."""
    bundle = load(base)
    assert bundle.task is not None
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    how = Decoding(max_new_tokens=12, temperature=0.0)
    prompt = texts(1)[0]
    (ours,) = TextGenerator(bundle.model, bundle.tokenizer).generate([prompt], how)
    ids = torch.tensor([bundle.tokenizer.encode([prompt])[0].ids])
    with torch.no_grad():
        found = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    text = bundle.tokenizer.decode(found.tolist())
    return "equal" if ours.text.strip() == text.strip() else f"{ours.text!r} / {text!r}"


def rows_of(family: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The tasks of a family with these cells, and what needs no task."""
    folder = Path(tempfile.mkdtemp())
    try:
        base = base_folder(family, folder / "base")
        for task, head in TASKS.items():
            if head in FAMILIES[family].heads:
                yield task, row(family, task, base, folder, columns)
        more = {}
        if family not in PAIRS and "embed" in columns:
            more["embed"] = cell(lambda: embedded(base))
        if "causal_lm" in FAMILIES[family].heads and "generate" in columns:
            more["generate"] = cell(lambda: generated(base))
        yield "", more
    finally:
        shutil.rmtree(folder)


@dataclass
class DocsTable:
    """A table of the docs.

    Attributes:
        keys: the first columns, which say what a row is about; two tables have other ones.
        columns: the others.
        rows: cells by column, by what a row is about.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    rows: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)

    @property
    def head(self) -> list[str]:
        """The first two lines."""
        marks = ["---"] * len(self.keys) + ["---:"] * len(self.columns)
        return [_line((*self.keys, *self.columns)), f"|{'|'.join(marks)}|"]

    def add(self, about: tuple[str, ...], cells: Mapping[str, str]) -> str:
        """Add a row, and return its line."""
        short = {name: text.partition(": ")[0] for name, text in cells.items()}
        self.rows[about] = {**self.rows.get(about, {}), **short}
        return self.line(about)

    def line(self, about: tuple[str, ...]) -> str:
        """A row in Markdown."""
        return _line((*about, *(self.rows[about].get(name, "") for name in self.columns)))

    @classmethod
    def of(cls, page: Path, keys: tuple[str, ...], columns: tuple[str, ...]) -> DocsTable:
        """Read the table with these keys on a page, as far as it has these columns."""
        lines, first, last = cls._place(page, keys)
        names, *rows = (
            [c.strip() for c in line.strip("|").split("|")] for line in lines[first:last]
        )
        table = cls(keys, columns)
        for cells in rows[1:]:
            own = dict(zip(names, cells, strict=True))
            table.add(tuple(own.pop(key) for key in keys), own)
        return table

    def put(self, page: Path) -> None:
        """Put the cells into the table of a page, in the order of the families and tasks here."""
        lines, first, last = self._place(page, self.keys)
        merged = DocsTable.of(page, self.keys, self.columns)
        for about, cells in self.rows.items():
            merged.add(about, cells)
        places = [*SIZES, *TASKS]
        order = sorted(merged.rows, key=lambda about: [places.index(name) for name in about])
        lines[first:last] = [*self.head, *map(merged.line, order)]
        page.write_text("\n".join(lines), encoding="utf-8")

    @staticmethod
    def _place(page: Path, keys: tuple[str, ...]) -> tuple[list[str], int, int]:
        """The lines of a page, and those of the table, from the first to before the last."""
        lines = page.read_text(encoding="utf-8").split("\n")
        starts = [f"| {' | '.join(keys)} | {first} |" for first in (COLUMNS[0], OTHERS[0])]
        first = next(i for i, line in enumerate(lines) if line.startswith((*starts,)))
        return lines, first, next(i for i in range(first, len(lines)) if lines[i][:1] != "|")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


#: The keys and the columns of the tables: of families with tasks, and of families alone.
TABLES = ((("family", "task"), COLUMNS), (("family",), OTHERS))


def main() -> None:
    """Print the tables, and why something is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = (*COLUMNS, *OTHERS)
    parser.add_argument("--families", nargs="+", choices=[*SIZES], default=[*SIZES])
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--docs", action="store_true")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    of_tasks, of_families = (DocsTable(*which) for which in TABLES)
    reasons = dict[str, list[str]]()
    print("\n".join(of_tasks.head))
    for family in options.families:
        for task, cells in rows_of(family, options.only):
            if task:
                print(of_tasks.add((family, task), cells), flush=True)
            elif cells:
                of_families.add((family,), cells)
            for name, text in cells.items():
                if ": " in text:
                    reasons.setdefault(text, []).append(f"{family} {task} {name}")
        if options.docs:  # after each family: the whole takes a while
            for table, folder in itertools.product((of_tasks, of_families), PAGES):
                table.put(folder / "checkpoints.md")
    print("\n".join(["", *of_families.head, *map(of_families.line, of_families.rows)]))
    for text, where in reasons.items():
        print(f"\n{text}\n    {', '.join(where)}")


if __name__ == "__main__":
    main()
