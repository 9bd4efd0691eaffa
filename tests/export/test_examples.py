"""The programs that are written beside exports answer as the model does, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pretune
from pretune.bundle.bundle import Bundle, load
from pretune.export.ctranslate2_folder import export_ctranslate2
from pretune.export.onnx_files import export_onnx
from pretune.inference.embed import Embedder
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.regression.regress import Regress, RegressOptions
from tests.tasks.every_task import CASES, LABELS

TEXTS = ["The good film, un 42!", "bad"]
#: Runs programs one after another in a process in which torch and pretune cannot be imported.
RUN = """
import contextlib, io, json, runpy, sys
for name in ("torch", "transformers", "pretune"):
    sys.modules[name] = None
printed = {}
for name, arguments in json.load(sys.stdin).items():
    sys.argv, out = arguments, io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(sys.argv[0])
    printed[name] = out.getvalue()
print(json.dumps(printed))
"""


@dataclass(frozen=True)
class Example:
    """A model, what its program is asked, and what it should print."""

    bundle: Callable[[Path, Path], Bundle]
    asked: Sequence[str]
    expected: Callable[[Bundle, Sequence[str]], str]
    export: Callable[..., Any] = export_onnx


def of_case(name: str) -> Callable[[Path, Path], Bundle]:
    return CASES[name].bundle


def with_task(task: Callable[[], Any]) -> Callable[[Path, Path], Bundle]:
    def bundle(tiny: Path, _: Path) -> Bundle:
        torch.manual_seed(0)
        made = load(tiny, task=task())
        torch.nn.init.normal_(made.model.get_parameter("classifier.weight"))
        return made

    return bundle


def scores_long(long: str, **options: Any) -> Callable[[Path, Path], Bundle]:
    return with_task(lambda: Regress(RegressOptions(max_length=8, long=long, **options)))


def tuned(tiny: Path, place: Path) -> Bundle:
    bundle: Any = CASES["multilabel"].bundle(tiny, place)
    bundle.task.thresholds = [0.25, 0.8, 0.5]
    return bundle  # type: ignore[no-any-return]


def unsure(tiny: Path, place: Path) -> Bundle:
    bundle: Any = CASES["answer_none"].bundle(tiny, place)
    bundle.task.threshold = 1e3
    return bundle  # type: ignore[no-any-return]


def answers(field: str, rows: Callable[[Sequence[str]], Any] = list) -> Callable[..., str]:
    """What `pretune predict` gives, a line for each text."""

    def expected(bundle: Bundle, asked: Sequence[str]) -> str:
        return "".join(f"{getattr(own, field)}\n" for own in pretune.predict(bundle, rows(asked)))

    return expected


def one_pair(asked: Sequence[str]) -> Any:
    return [tuple(asked)]


def tags(bundle: Bundle, asked: Sequence[str]) -> str:
    words = [["The", "good", "film", ",", "un", "42", "!"], ["好", "bad"]]
    predicted: Any = pretune.predict(bundle, [{"tokens": own} for own in words])
    lines = [
        " ".join(f"{word}/{tag}" for word, tag in zip(own, answer.tags, strict=True))
        for own, answer in zip(words, predicted, strict=True)
    ]
    return "\n".join(lines) + "\n"


def chosen(bundle: Bundle, asked: Sequence[str]) -> str:
    row = {"context": asked[0], "choices": list(asked[1:])}
    (answer,) = pretune.predict(bundle, [row])
    return f"{asked[1 + answer.choice]}\n"  # type: ignore[attr-defined]


def gaps(bundle: Bundle, asked: Sequence[str]) -> str:
    predicted: Any = pretune.predict(bundle, list(asked))
    return "".join(f"{[c.token for c in gap]}\n" for own in predicted for gap in own.gaps)


def continued(bundle: Bundle, asked: Sequence[str]) -> str:
    (written,) = pretune.generate(bundle, [asked[0]], temperature=0, max_new_tokens=64)
    ids = [*bundle.tokenizer.encode([asked[0]])[0].ids[:-1], *written.tokens]
    return bundle.tokenizer.decode(ids[:64]) + "\n"


def went_on(bundle: Bundle, asked: Sequence[str]) -> str:
    """CTranslate2's program prints each continuation with its prompt."""
    return "".join(continued(bundle, [text]) for text in asked)


PAIR = ["the good film", "bad 42"]
#: Of one token to more than three windows of eight; the last one has no token of its own.
LONG = ["a b c d e f g h i j k", "good", "the bad film " * 9, ""]
EXAMPLES = {
    "classify": Example(of_case("classify"), TEXTS, answers("label")),
    "pairs": Example(
        with_task(lambda: Classify(ClassifyOptions(max_length=32, pair=True), LABELS)),
        PAIR,
        answers("label", one_pair),
    ),
    "multilabel": Example(of_case("multilabel"), TEXTS, answers("labels")),
    "multilabel, tuned": Example(tuned, TEXTS, answers("labels")),
    "tag": Example(of_case("tag"), [TEXTS[0], "好bad"], tags),
    "crf": Example(of_case("tag_crf"), [TEXTS[0], "好bad"], tags),
    "answer": Example(of_case("answer"), PAIR, answers("answer", one_pair)),
    "no answer": Example(of_case("answer_none"), PAIR, answers("answer", one_pair)),
    "an answer after all": Example(unsure, PAIR, answers("answer", one_pair)),
    "choose": Example(of_case("choose"), ["the film", "good", "bad", "un x"], chosen),
    "mask_lm": Example(of_case("mask_lm"), ["the [MASK] film [MASK]", "[MASK]"], gaps),
    "causal_lm": Example(of_case("causal_lm"), ["the good film"], continued),
    "translate": Example(of_case("translate"), ["the good film 7"], answers("translation")),
    "causal_lm, ctranslate2": Example(of_case("causal_lm"), TEXTS, went_on, export_ctranslate2),
    "translate, ctranslate2": Example(
        of_case("translate"), TEXTS, answers("translation"), export_ctranslate2
    ),
}
#: Of these numbers are printed.
NUMBERS = {
    "regress": Example(with_task(lambda: Regress(RegressOptions(max_length=32))), TEXTS, str),
    "embed": Example(lambda tiny, _: load(tiny), TEXTS, str),
    "windows": Example(scores_long("windows", overlap=2, max_windows=3), LONG, str),
    "head_tail": Example(scores_long("head_tail"), LONG, str),
}


@pytest.fixture(scope="module")
def ran(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Bundle], dict[str, str]]:
    """The models, and what the programs beside their exports printed."""
    bundles, asked = {}, {}
    with torch.random.fork_rng():
        for name, own in {**EXAMPLES, **NUMBERS}.items():
            place = tmp_path_factory.mktemp("exported")
            bundles[name] = bundle = own.bundle(tiny_folder, place)
            own.export(bundle, place / "out")
            asked[name] = [str(place / "out" / "example.py"), *own.asked]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return bundles, json.loads(done.stdout)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_program_answers_as_predict_does(
    name: str, ran: tuple[dict[str, Bundle], dict[str, str]]
) -> None:
    bundles, printed = ran
    own = EXAMPLES[name]
    assert printed[name] == own.expected(bundles[name], own.asked)


@pytest.mark.parametrize("name", ["regress", "windows", "head_tail"])
def test_a_program_gives_the_scores_of_predict(name: str, ran: Any) -> None:
    bundles, printed = ran
    scores = [answer.score for answer in pretune.predict(bundles[name], NUMBERS[name].asked)]
    np.testing.assert_allclose([*map(float, printed[name].split())], scores, atol=1e-5)


def test_a_program_gives_the_vectors_of_embed(ran: Any) -> None:
    bundles, printed = ran
    vectors = Embedder(bundles["embed"]).embed(TEXTS)
    table = printed["embed"].replace("[", " ").replace("]", " ").split()
    np.testing.assert_allclose([*map(float, table)], (vectors @ vectors.T).ravel(), atol=1e-5)
