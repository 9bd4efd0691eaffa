"""A model that reads long texts in windows does so wherever it is asked."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pretune
from pretune.bundle.adapted import with_adapter
from pretune.bundle.bundle import ADAPTER, Bundle, load, save
from pretune.bundle.task_file import with_options
from pretune.cli.app import app
from pretune.data.records import Records
from pretune.errors import Note
from pretune.evaluation.examine import examine
from pretune.evaluation.explain import explain
from pretune.export.onnx_files import export_onnx
from pretune.export.quality_gate import GateLimits, quantize
from pretune.inference.embed import Embedder
from pretune.inference.predict import Predictor
from pretune.models import kernels
from pretune.recipe.recipe import Recipe
from pretune.sklearn import TextClassifier
from pretune.tasks.distillation.taught import SOFT
from pretune.training.freeze import reads_once
from pretune.training.run import resume, train_recipe
from tests.serving.models import same
from tests.serving.served_process import Process
from tests.serving.test_worker import Turns
from tests.training.outcomes import assert_alike, outcome, stopped_after

#: The last word is the label: only who reads all of a text can know it.
ROWS = [
    {"text": f"{'a b c d '[: 2 * (1 + i % 4)] * (i % 7)}{word}", "label": word}
    for i, word in enumerate(["good", "bad"] * 16)
]
TEXTS = [row["text"] for row in ROWS]
#: Longer than the 8 windows that are read.
TOO_LONG = "x y " * 20
TASK = {"name": "classify", "max_length": 8, "long": "windows", "overlap": 2, "max_windows": 8}
#: Anything passes.
ANY = GateLimits(100, 0)


def records(rows: Sequence[dict[str, str]] = ROWS) -> Records:
    return Records([*rows], "films.jsonl", range(1, len(rows) + 1), ("text", "label"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data."""
    folder = tmp_path_factory.mktemp("windows")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "films.jsonl").write_text(lines, encoding="utf-8")
    return folder


def recipe(place: Path, tiny_folder: Path, output: str, **changes: Any) -> Recipe:
    data = str(place / "films.jsonl")
    values = {
        "task": TASK,
        "model": {"from": str(tiny_folder)},
        "data": {"train": data, "validation": data},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"},
        "output": str(place / output),
    }
    return Recipe.of(values).changed({k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def run(place: Path, tiny_folder: Path) -> Path:
    """A run that read in windows. Not to be changed."""
    train_recipe(recipe(place, tiny_folder, "run"), quiet=True)
    return place / "run"


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return load(run)


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    """The model in a folder of its own."""
    made = tmp_path / "model"
    made.mkdir()
    save(bundle, made)
    return made


def scores(bundle: Bundle, texts: Sequence[str] = TEXTS, **options: Any) -> torch.Tensor:
    """The probabilities of each text, asked one by one."""
    predictor = Predictor(bundle, device="cpu", **{"precision": "float32", **options})
    answers = [predictor.predict(predictor.records([text]))[0] for text in texts]
    return torch.tensor([[*answer.to_dict()["scores"].values()] for answer in answers])


class TestAnswers:
    def test_hang_on_what_only_the_last_window_has(self, bundle: Bundle) -> None:
        ends = [f"{'a b c d ' * 4}{word}" for word in ("good", "bad")]
        good, bad = scores(bundle, ends)
        assert not torch.equal(good, bad)
        task: Any = bundle.task
        cut = replace(bundle, task=with_options(task, {"long": "cut"}))
        good, bad = scores(cut, ends)
        assert torch.equal(good, bad)

    def test_are_the_same_alone_and_together(self, bundle: Bundle) -> None:
        together = Predictor(bundle, device="cpu", precision="float32", batch_tokens=100)
        answers = together.predict(together.records(TEXTS))
        given = torch.tensor([[*answer.to_dict()["scores"].values()] for answer in answers])
        torch.testing.assert_close(given, scores(bundle), atol=1e-5, rtol=0)

    def test_of_the_command_are_those_of_python(
        self, run: Path, bundle: Bundle, tmp_path: Path
    ) -> None:
        texts = [*TEXTS, TOO_LONG]
        (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        ask = ["predict", str(run), "--file", str(tmp_path / "in.txt"), "--json", "--device", "cpu"]
        done = CliRunner().invoke(app, ask)
        printed = [json.loads(line)["scores"] for line in done.stdout.splitlines()]
        given = torch.tensor([[*own.values()] for own in printed])
        torch.testing.assert_close(given, scores(bundle, texts), atol=1e-5, rtol=0)
        assert "1 of them had more than 8 windows of 8 tokens; the rest was cut" in done.stderr

    def test_are_evaluated_and_examined_example_by_example(self, bundle: Bundle) -> None:
        examined = examine(bundle, records(), device="cpu")
        right = [example.grade.right for example in examined.examples]
        assert examined.metrics["accuracy"] == pytest.approx(sum(right) / len(ROWS))
        mean = sum(example.loss for example in examined.examples) / len(ROWS)
        assert examined.metrics["loss"] == pytest.approx(mean, abs=1e-5)
        longest = max(range(len(ROWS)), key=lambda i: len(TEXTS[i].split()))
        # The report explains the loss of the worst examples: each token of the text stands once.
        told = explain(examined, longest)
        assert [t for t in told.tokens if t not in ("[CLS]", "[SEP]")] == TEXTS[longest].split()

    def test_are_explained_token_by_token(self, run: Path) -> None:
        (told,) = pretune.load(run).explain("a b c d " * 4 + "good")
        assert told.tokens == ("[CLS]", *"abcd" * 4, "good", "[SEP]")
        # Where windows overlap, a token has the sum of what it does in both.
        assert sum(told.attributions) == pytest.approx(told.value - told.baseline, abs=0.02)
        assert told.attributions[17] != 0 == told.attributions[0]


class TestTraining:
    def test_goes_on_as_if_never_stopped(self, place: Path, tiny_folder: Path) -> None:
        budget = {"train__batch_size": None, "train__batch_tokens": 128, "model__dropout": 0.1}
        train_recipe(recipe(place, tiny_folder, "whole", **budget), quiet=True)
        with stopped_after(3):
            train_recipe(recipe(place, tiny_folder, "parts", **budget), quiet=True)
        resume(place / "parts", quiet=True)
        assert_alike(outcome(place / "parts"), outcome(place / "whole"))

    def test_of_a_head_alone_reads_the_backbone_each_time(self, bundle: Bundle) -> None:
        task: Any = bundle.task
        features = pretune.tasks.features.record_features(task, records(), bundle.tokenizer)
        for parameter in bundle.backbone.parameters():
            parameter.requires_grad_(False)
        try:
            assert not reads_once(task, bundle.model, features)
            assert reads_once(task, bundle.model, replace(features, choices=None))
        finally:
            bundle.model.requires_grad_(True)

    def test_of_an_adapter_is_beside_the_model_what_it_is_merged(
        self, place: Path, tiny_folder: Path
    ) -> None:
        settings = recipe(place, tiny_folder, "lora", train__lora={"rank": 2})
        train_recipe(settings, quiet=True)
        beside = with_adapter(load(tiny_folder), place / "lora" / "last" / ADAPTER)
        assert beside.task is not None
        assert beside.task.options.in_full()["long"] == "windows"
        whole = scores(load(place / "lora" / "last"))
        torch.testing.assert_close(scores(beside), whole, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("how", ["windows", "cut"])
    def test_learns_what_a_teacher_says_of_the_whole_text(
        self, how: str, run: Path, place: Path, tiny_folder: Path, bundle: Bundle
    ) -> None:
        teacher = {"from": str(run), "temperature": 2.0}
        name = f"student-{how}"
        settings = recipe(place, tiny_folder, name, task__long=how, teacher=teacher)
        result = train_recipe(settings, quiet=True)
        assert "teacher_kl" in result.metrics
        kept = np.array(load_kept(place / name)[f"train.{SOFT}"])
        logits = torch.tensor(Predictor(bundle, device="cpu").logits(records()))
        wanted = (logits / 2.0).softmax(-1).numpy()
        np.testing.assert_allclose(kept, wanted, atol=2e-3)  # kept in 16 bits

    @pytest.mark.slow
    def test_learns_what_lies_inside_the_windows_of_a_teacher(
        self, run: Path, place: Path, tiny_folder: Path
    ) -> None:
        teacher = {"from": str(run), "hidden": 1.0, "relations": 1.0}
        result = train_recipe(recipe(place, tiny_folder, "inside", teacher=teacher), quiet=True)
        # The windows of a text count as the text does: the sum of their shares is 1.
        assert 0 < result.metrics["hidden_loss"] < 2
        assert result.metrics["relation_loss"] > 0


def load_kept(folder: Path) -> dict[str, Any]:
    """What a run keeps of its teacher."""
    from safetensors.numpy import load_file

    from pretune.training.reference_scores import REFERENCE_FILE

    return dict(load_file(folder / REFERENCE_FILE))


@pytest.fixture
def turns(run: Path) -> Iterator[Turns]:
    served = Turns({"films": run}, max_batch_tokens=64)
    yield served
    served.close()


class TestServing:
    def test_answers_of_many_clients_are_those_of_each_alone(
        self, turns: Turns, bundle: Bundle
    ) -> None:
        asked = [turns.ask("predict", TEXTS[i : i + 5]) for i in range(0, len(TEXTS), 5)]
        logits = turns.ask("logits", TEXTS)
        turns.turns(*asked, logits)
        answers = [answer for number in asked for answer in turns.answer(number)]
        alone = [own.to_dict() for own in Predictor(bundle, device="cpu").predict(records())]
        given = [{name: own[name] for name in alone[0]} for own in answers]
        assert same(given, alone)
        predictor = Predictor(bundle, device="cpu")
        assert same(turns.answer(logits), predictor.logits(records()))

    def test_batches_are_packed_by_the_tokens_of_all_windows(
        self, turns: Turns, bundle: Bundle
    ) -> None:
        features = Predictor(bundle, device="cpu").tokenize(records()).features
        assert features is not None
        assert max(map(len, features.choices or ())) > 2
        asked = [turns.ask("predict", [text]) for text in TEXTS]
        turns.turns(*asked)
        tokens = [own.tokens for own in turns.runs()]
        assert sum(tokens) == len(features.tokens)
        assert max(tokens) <= 64
        assert max(own.requests for own in turns.runs()) > 1

    def test_says_how_long_a_text_may_be(self, turns: Turns) -> None:
        model = turns.models["films"]
        # The first window reads 6 tokens of a text, and each of the 7 others 4 more.
        assert model.served.context_length == 8 + 7 * 4
        fits = turns.ask("predict", ["a " * 34], truncate=False)
        over = turns.ask("predict", ["a " * 35], truncate=False)
        turns.turns(fits, over)
        assert len(turns.answer(fits)) == 1
        assert turns.answer(over).message == "`inputs` must have less than 37 tokens. Given: 37"

    def test_explains_all_of_a_text(self, turns: Turns) -> None:
        asked = turns.ask("explain", ["a b c d " * 4 + "good"], attention=True)
        turns.turns(asked)
        (told,) = turns.answer(asked)
        assert told["tokens"] == ["[CLS]", *"abcd" * 4, "good", "[SEP]"]
        assert told["attention"] is None

    @pytest.mark.slow
    def test_over_http(self, run: Path, bundle: Bundle) -> None:
        process = Process(run)
        try:
            ours = process.request("POST", "/v1/predict", {"inputs": TEXTS}).json["answers"]
            alone = {"inputs": [[text] for text in TEXTS]}  # two in a list would be a pair
            theirs = process.request("POST", "/predict", alone).json
        finally:
            process.kill()
        wanted = scores(bundle).tolist()
        for own, other, (bad, good) in zip(ours, theirs, wanted, strict=True):
            assert same(own["scores"], {"bad": bad, "good": good})
            assert same({one["label"]: one["score"] for one in other}, own["scores"])


class TestOtherForms:
    def test_vectors_are_of_what_the_model_reads_at_once(self, bundle: Bundle) -> None:
        long = " ".join("abcdefghij" * 10)
        embedder = Embedder(bundle, device="cpu")
        # 62 of the 100 tokens, as of any model: the 64 positions.
        both = embedder.embed([long, " ".join("abcdefghij" * 10)[: 2 * 62 - 1]])
        np.testing.assert_allclose(both[0], both[1], atol=1e-5)
        assert embedder.cut == 1

    def test_8_bits(self, folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "SMALLEST", 512)
        again = load(folder)
        result = quantize(again, records(), ANY)
        assert result.value == examine(bundle, records(), device="cpu").metrics["accuracy"]
        small = folder.with_name("small")
        small.mkdir()
        save(again, small, int8=result.record())
        int8 = scores(load(small))
        assert not torch.equal(int8, scores(bundle))
        torch.testing.assert_close(int8, scores(bundle), atol=0.1, rtol=0)

    @pytest.mark.slow
    def test_onnx_judges_8_bits_by_all_windows(self, folder: Path, tmp_path: Path) -> None:
        with pytest.warns(Note, match="example.py makes them of long texts"):
            done = export_onnx(folder, tmp_path / "onnx", int8=True, data=records(), limits=ANY)
        assert done.gate is not None
        # The same answers: a file that is given the first windows alone would have others.
        assert done.gate.tried[0].agreement is not None
        assert done.gate.tried[0].agreement > 90

    def test_scikit_learn(self, tiny_folder: Path) -> None:
        overrides = {"task.long": "windows", "task.overlap": 2}
        model = TextClassifier(
            str(tiny_folder),
            epochs=1,
            max_length=8,
            overrides=overrides,
            random_state=0,
        ).fit(TEXTS, [row["label"] for row in ROWS])
        given = torch.tensor(model.predict_proba(TEXTS), dtype=torch.float32)
        torch.testing.assert_close(given, scores(model.bundle_), atol=1e-5, rtol=0)
        again = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
        np.testing.assert_allclose(again.predict_proba(TEXTS), model.predict_proba(TEXTS), 1e-5)

    def test_a_model_that_cut_can_be_asked_to_read_windows(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        from pretune.tasks.classification.classify import Classify, ClassifyOptions

        torch.manual_seed(0)
        made = load(tiny_folder, task=Classify(ClassifyOptions(max_length=8), ["bad", "good"]))
        save(made, tmp_path)
        asked = load(tmp_path, options={"long": "windows", "overlap": 2, "max_windows": 8})
        cut = [" ".join(text.split()[:6]) for text in TEXTS]
        torch.testing.assert_close(scores(load(tmp_path)), scores(asked, cut))
        assert not torch.equal(scores(asked), scores(asked, cut))
