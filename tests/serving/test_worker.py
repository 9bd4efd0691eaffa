"""The engine of a worker, in this process and one turn at a time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pretune.bundle.bundle import load
from pretune.decoding.decoding import Decoding
from pretune.errors import CheckpointError
from pretune.inference.embed import Embedder
from pretune.inference.generate import TextGenerator
from pretune.inference.predict import Predictor, records_of, shown_inputs
from pretune.serving import worker
from pretune.serving.held_model import HeldModel
from pretune.serving.jobs import Alive, Ask, BatchRun, Done, Failed, Generate, Part, Piece
from pretune.serving.worker import BatchEngine, Link
from tests.serving.models import model_of, options_for, same, saved, unlabelled
from tests.tasks.every_task import CASES


class Turns:
    """An engine whose turns a test takes one by one."""

    def __init__(self, models: dict[str, Path], **more: Any) -> None:
        self._front, theirs = socket.socketpair()
        options = options_for(models, **more)
        self.models = {name: HeldModel(name, str(f), 1, options) for name, f in models.items()}
        self._link = Link(theirs)
        self.told: list[Any] = []
        self._link.send = self.told.extend  # type: ignore[method-assign]
        self.engine = BatchEngine(self._link, self.models, options)
        self._theirs, self._asked = theirs, 0

    def ask(self, kind: Any, payload: Any, seconds: float = 60.0, **options: Any) -> int:
        self._asked += 1
        now = time.monotonic()
        model = next(iter(self.models))
        ask = Ask(self._asked, model, kind, payload, options, now + seconds)
        self.engine.hold(ask.id)
        self.engine.accept(ask, now)
        return ask.id

    def turns(self, *numbers: int) -> int:
        """Take turns until these requests are answered; how many it took."""
        for count in range(1, 2000):
            self.engine.turn()
            if {*numbers} <= {m.id for m in self.told if isinstance(m, Done | Failed)}:
                return count
        raise AssertionError("no answer")

    def answer(self, number: int) -> Any:
        (message,) = [m for m in self.told if isinstance(m, Done | Failed) and m.id == number]
        return message.value if isinstance(message, Done) else message

    def pieces(self, number: int) -> list[Piece]:
        return [m.value for m in self.told if isinstance(m, Part) and m.id == number]

    def runs(self) -> list[BatchRun]:
        return [m for m in self.told if isinstance(m, BatchRun)]

    def close(self) -> None:
        self._front.close()
        self._link.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, place: Path) -> Callable[[str], Path]:
    """The folder of a model of a task, made once."""
    made: dict[str, Path] = {}

    def of(task: str) -> Path:
        if task not in made:
            made[task] = model_of(task, tiny_folder, place)
        return made[task]

    return of


@pytest.fixture
def engine(folder: Callable[[str], Path]) -> Any:
    """Makes engines with a model of a task."""
    made: list[Turns] = []

    def of(task: str, **more: Any) -> Turns:
        made.append(Turns({task: folder(task)}, **more))
        return made[-1]

    yield of
    for one in made:
        one.close()


def alone(folder: Path, rows: list[Any], top_k: int | None = None) -> list[dict[str, Any]]:
    """What `pretune predict --json` prints for each row, asked one by one."""
    predictor = Predictor(load(folder), device="cpu", precision="float32")
    answers = []
    for row in rows:
        records = predictor.records([row])
        (answer,) = predictor.predict(records)
        shown = shown_inputs(predictor.task, records.rows[0])
        answers.append({**shown, **answer.top(top_k).to_dict()})
    return answers


@pytest.mark.parametrize("task", list(CASES))
def test_answers_of_many_clients_are_those_of_each_alone(
    task: str, engine: Callable[..., Turns], folder: Callable[[str], Path]
) -> None:
    turns, rows = engine(task, max_batch_tokens=256), unlabelled(task, 7)
    asked = [turns.ask("predict", rows[start : start + 2]) for start in range(0, 7, 2)]
    turns.turns(*asked)
    together = [answer for number in asked for answer in turns.answer(number)]
    assert same(together, alone(folder(task), rows))
    # They were run together, not one after the other.
    assert max(run.requests for run in turns.runs()) > 1


def test_a_burst_is_one_packed_batch(engine: Callable[..., Turns]) -> None:
    turns = engine("classify")
    asked = [turns.ask("predict", [text]) for text in ("good", "the film " * 9, "bad", "a")]
    turns.turns(*asked)
    assert [(run.kind, run.requests) for run in turns.runs()] == [("predict", 4)]
    # Tokens of the texts, and no padding.
    encoded = turns.models["classify"].bundle.tokenizer.encode(
        ["good", "the film " * 9, "bad", "a"], max_length=32
    )
    assert turns.runs()[0].tokens == sum(len(own.ids) for own in encoded)


def test_a_bad_input_is_the_mistake_of_its_own_request(
    engine: Callable[..., Turns], folder: Callable[[str], Path]
) -> None:
    turns = engine("classify")
    good = turns.ask("predict", ["good", "bad"])
    wrong = [
        turns.ask("predict", ["fine", value])
        for value in (["a", "b"], {"body": "x"}, 7, None, [["x"]], {"text": {"a": 1}}, "\ud800")
    ]
    turns.turns(good, *wrong)
    assert same(turns.answer(good), alone(folder("classify"), ["good", "bad"]))
    for number in wrong:
        refused = turns.answer(number)
        assert (refused.status, refused.kind) == (422, "invalid")
        assert "row 2" in refused.message
        assert refused.message.endswith(".")
        assert "\n" not in refused.message


def test_a_batch_that_fails_is_run_request_by_request(
    engine: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    turns = engine("classify")
    model = turns.models["classify"]._predictor
    assert model is not None
    before = model.items

    def fails(features: Any, **more: Any) -> Any:
        if 30 in features.lengths:
            raise RuntimeError("a text of a client")
        return before(features, **more)

    monkeypatch.setattr(model, "items", fails)
    good = turns.ask("predict", ["good"])
    bad = turns.ask("predict", ["a " * 28])
    other = turns.ask("predict", ["bad"])
    turns.turns(good, bad, other)
    assert (turns.answer(bad).status, turns.answer(bad).kind) == (500, "internal")
    assert len(turns.answer(good)) == len(turns.answer(other)) == 1
    # Neither the client nor the log is told more than where it was.
    assert "client" not in turns.answer(bad).message + "".join(capfd.readouterr())


def test_top_k_and_blank_texts(engine: Callable[..., Turns], folder: Callable[[str], Path]) -> None:
    turns = engine("tag")
    rows = [{"tokens": ["good", "film"]}, {"tokens": ""}, {"tokens": "the good film"}]
    number = turns.ask("predict", rows, top_k=1)
    turns.turns(number)
    assert same(turns.answer(number), alone(folder("tag"), rows, 1))
    only = turns.ask("predict", [{"tokens": ""}])
    turns.turns(only)
    assert turns.answer(only) == [{"tokens": "", "entities": []}]


def test_logits_are_what_probabilities_are_made_of(engine: Callable[..., Turns]) -> None:
    turns, texts = engine("classify"), ["good", "bad film"]
    scores, logits = turns.ask("predict", texts), turns.ask("logits", texts)
    turns.turns(scores, logits)
    for answer, row in zip(turns.answer(scores), turns.answer(logits), strict=True):
        chances = np.exp(row) / np.exp(row).sum()
        assert list(answer["scores"].values()) == pytest.approx(chances.tolist(), abs=1e-5)


def test_a_text_that_would_be_cut_is_refused_where_that_is_wanted(
    engine: Callable[..., Turns],
) -> None:
    turns = engine("classify")
    cut = turns.ask("predict", ["good", "a " * 40])
    refused = turns.ask("predict", ["good", "a " * 40], truncate=False)
    vectors = turns.ask("embed", ["a " * 100], truncate=False)
    turns.turns(cut, refused, vectors)
    assert len(turns.answer(cut)) == 2
    assert turns.answer(refused).status == 413
    message = "`inputs` must have less than 33 tokens. Given: 42"
    assert turns.answer(refused).message == message
    message = "`inputs` must have less than 65 tokens. Given: 102"
    assert turns.answer(vectors).message == message


def test_more_tokens_than_a_request_may_have(engine: Callable[..., Turns]) -> None:
    turns = engine("classify", max_request_tokens=20)
    fits, too_many = turns.ask("predict", ["a a"] * 5), turns.ask("predict", ["a a"] * 6)
    turns.turns(fits, too_many)
    assert len(turns.answer(fits)) == 5
    refused = turns.answer(too_many)
    assert (refused.status, refused.limit) == (413, "max_request_tokens")


def test_vectors_are_those_of_embed(
    engine: Callable[..., Turns], folder: Callable[[str], Path]
) -> None:
    turns, texts = engine("classify"), ["good", "the film " * 9, "bad"]
    asked = [turns.ask("embed", [text]) for text in texts]
    cut = turns.ask("embed", texts, dimensions=8)
    raw = turns.ask("embed", texts, normalize=False, prompt="the")
    turns.turns(*asked, cut, raw)
    embedder = Embedder(load(folder("classify")), device="cpu")
    expected = embedder.embed(texts)
    together = np.concatenate([turns.answer(number).vectors for number in asked])
    np.testing.assert_allclose(together, expected, atol=1e-5)
    # One batch, but for the request whose prompt has tokens of its own.
    assert turns.runs()[0].requests == 4 or turns.runs()[0].requests == 5
    kept = expected[:, :8]
    kept = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(turns.answer(cut).vectors, kept, atol=1e-5)
    plain = Embedder(load(folder("classify")), device="cpu", normalize=False, prompt="the")
    np.testing.assert_allclose(turns.answer(raw).vectors, plain.embed(texts), atol=1e-5)
    counted = sum(len(e.ids) for e in load(folder("classify")).tokenizer.encode(texts))
    assert turns.answer(cut).tokens == counted


@pytest.mark.parametrize("options", [{"dimensions": 33}, {"prompt_name": "query"}])
def test_vectors_that_the_model_cannot_give(
    options: dict[str, Any], engine: Callable[..., Turns]
) -> None:
    turns = engine("classify")
    number = turns.ask("embed", ["a"], **options)
    turns.turns(number)
    assert turns.answer(number).status == 422
    assert turns.answer(number).param == next(iter(options))


def test_what_a_model_cannot_do_is_said(engine: Callable[..., Turns]) -> None:
    turns = engine("classify")
    kinds = {"fill": ["[MASK]"], "likelihood": [("a", "b")]}
    asked = [turns.ask(kind, payload) for kind, payload in kinds.items()]
    asked.append(turns.ask("generate", Generate("a", Decoding())))
    turns.turns(*asked)
    for number in asked:
        refused = turns.answer(number)
        assert (refused.status, refused.kind) == (422, "unsupported")
        assert "predict" in refused.message


def test_tokens_of_texts(engine: Callable[..., Turns]) -> None:
    turns = engine("classify")
    whole = turns.ask("tokenize", ["good film"])
    bare = turns.ask("tokenize", ["good film"], special=False)
    turns.turns(whole, bare)
    ((first, good, film, last),) = turns.answer(whole)
    assert (first.text, first.special, first.start) == ("[CLS]", True, None)
    assert (good.text, good.special, good.start, good.stop) == ("good", False, 0, 4)
    assert (film.start, film.stop, last.text) == (5, 9, "[SEP]")
    assert turns.answer(bare) == [[good, film]]


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("reward", {"messages": "the film?", "completion": ["good"]}),
        ("reward", {"messages": [{"role": "user", "content": " "}], "completion": "good"}),
        ("reward", {"messages": [{"role": "x" * 9999, "content": "a"}], "completion": "good"}),
        ("choose", {"context": "the", "choices": "x" * 9999}),
        ("choose", {"context": "the", "choices": ["good", 5 * [None], "bad"]}),
        ("classify", {"text": ["good"]}),
    ],
)
def test_whoever_sent_a_request_has_no_records_to_remove(
    task: str, row: dict[str, Any], engine: Callable[..., Turns]
) -> None:
    turns = engine(task)
    number = turns.ask("predict", [row])
    turns.turns(number)
    failed = turns.answer(number)
    assert failed.status == 422
    assert "inputs, row 1" in failed.message
    assert "remove" not in failed.message
    assert "task." not in failed.message
    assert failed.message.endswith(".")
    assert len(failed.message) < 500


@pytest.mark.parametrize("reply", [None, 5, "", "5"])
def test_a_reply_that_is_missing_or_a_number_is_a_text(
    reply: Any, engine: Callable[..., Turns]
) -> None:
    turns = engine("reward")
    asked = [
        turns.ask("predict", [{"messages": "the film?", "completion": own}])
        for own in (reply, "" if reply is None else str(reply))
    ]
    turns.turns(*asked)
    given, text = (turns.answer(number)[0] for number in asked)
    assert given["score"] == pytest.approx(text["score"], abs=1e-5)


def test_where_files_lie_is_told_to_the_log_alone(
    engine: Callable[..., Turns],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = engine("classify")

    def fail(*texts: object, **more: object) -> Any:
        raise CheckpointError("/models/secret/tokenizer.json: it fails")

    monkeypatch.setattr(type(turns.models["classify"].bundle.tokenizer), "encode", fail)
    number = turns.ask("predict", ["good"])
    turns.turns(number)
    failed = turns.answer(number)
    assert (failed.status, failed.kind) == (422, "unreadable")
    assert "secret" not in failed.message
    assert "/models/secret/tokenizer.json" in caplog.text


class TestAtWork:
    def test_says_so_when_it_is_asked(self, engine: Callable[..., Turns]) -> None:
        turns = engine("classify")
        turns.engine._pass_on([Alive()], time.monotonic())
        turns.engine.turn()
        assert turns.told == [Alive()]

    def test_one_whose_tokenizer_never_ends_ends(
        self, engine: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended: list[int] = []
        monkeypatch.setattr(worker.os, "_exit", ended.append)
        turns = engine("classify", timeout=5.0)
        # A text is read, for less long than a request may take; then for longer than any takes.
        for seconds in (4.0, worker.STUCK - 1, worker.STUCK + 1):
            assert not ended
            turns.engine._tokenizing = "classify", time.monotonic() - seconds
            turns.engine._pass_on([Alive()], time.monotonic())
            turns.engine.turn()
        assert ended == [1]


class TestSteps:
    def test_gaps_are_filled(
        self, engine: Callable[..., Turns], folder: Callable[[str], Path]
    ) -> None:
        turns = engine("mask_lm")
        texts = [f"the {'good ' * (i % 3)}[MASK]" for i in range(20)]
        number = turns.ask("fill", texts, top_k=3, targets=None)
        turns.turns(number)
        filled = turns.answer(number)
        expected = alone(folder("mask_lm"), texts, 3)
        for own, other in zip(filled, expected, strict=True):
            scores = [candidate["score"] for candidate in other["gaps"][0]]
            assert [fit["score"] for fit in own[0]] == pytest.approx(scores, abs=1e-5)

    def test_a_text_without_a_gap_is_named(self, engine: Callable[..., Turns]) -> None:
        turns = engine("mask_lm")
        number = turns.ask("fill", ["[MASK]"] * 9 + ["good"], top_k=3, targets=None)
        turns.turns(number)
        assert turns.answer(number).status == 422
        assert "row 10" in turns.answer(number).message

    def test_continuations_are_scored(
        self, engine: Callable[..., Turns], folder: Callable[[str], Path]
    ) -> None:
        from pretune.inference.likelihood import LikelihoodScorer

        turns = engine("causal_lm")
        pairs = [("the good", f" film {i}") for i in range(12)]
        number = turns.ask("likelihood", pairs)
        turns.turns(number)
        scorer = LikelihoodScorer.of(load(folder("causal_lm")), device="cpu")
        for own, pair in zip(turns.answer(number), pairs, strict=True):
            (expected,) = scorer.score([scorer.pair(*pair)])
            assert own.total == pytest.approx(expected.total, abs=1e-4)

    def test_predictions_go_on_between_steps(self, engine: Callable[..., Turns]) -> None:
        turns = engine("mask_lm")
        long = turns.ask("fill", ["[MASK]"] * 40, top_k=1, targets=None)
        short = turns.ask("predict", ["[MASK]"])
        assert turns.turns(short) == 1
        assert turns.turns(long) > 3


class TestExplain:
    @pytest.mark.parametrize(
        "task", ["classify", "multilabel", "regress", "choose", "tag", "answer", "mask_lm"]
    )
    def test_attributions_add_up_to_how_sure_the_text_makes_the_model(
        self, task: str, engine: Callable[..., Turns], folder: Callable[[str], Path]
    ) -> None:
        turns, rows = engine(task), unlabelled(task, 2)
        number = turns.ask("explain", rows[:1], attention=True)
        turns.turns(number)
        (explained,) = turns.answer(number)
        assert same(explained["answer"], alone(folder(task), rows[:1])[0])
        # The certainty of the text less that of the same with a mask for each token.
        bundle = load(folder(task))
        predictor = Predictor(bundle, device="cpu", precision="float32")
        part = predictor.tokenize(records_of(predictor.task, rows[:1]))
        assert part.features is not None
        batches = [part.features.batch(np.array([i])) for i in range(len(part.features))]
        asked, tokenizer = predictor.task, bundle.tokenizer
        special = {tokenizer.special_id(name) for name in tokenizer.special.keys() - {"unk_token"}}
        mask = tokenizer.special_id("mask_token")

        def masked(module: nn.Module, inputs: tuple[torch.Tensor], output: Any) -> Any:
            masks = [token if token in special else mask for token in inputs[0].tolist()]
            return module.forward(torch.tensor(masks))

        with torch.no_grad():
            outputs = [asked.forward(bundle.model, batch) for batch in batches]
            trios = zip(outputs, batches, outputs, strict=True)
            sure = [float(asked.certainty(*trio)) for trio in trios]  # type: ignore[attr-defined]
            best = int(np.argmax(sure))
            bundle.backbone.embeddings.tokens.register_forward_hook(masked)
            without = asked.forward(bundle.model, batches[best])
            unsure = float(asked.certainty(without, batches[best], outputs[best]))  # type: ignore[attr-defined]
        assert explained["value"] == pytest.approx(sure[best], abs=1e-4)
        assert explained["baseline"] == pytest.approx(unsure, abs=1e-4)
        assert sum(explained["attributions"]) == pytest.approx(
            sure[best] - unsure, rel=1e-2, abs=1e-3
        )
        lengths = {len(explained[name]) for name in ("tokens", "texts", "attributions")}
        assert lengths == {batches[best].num_tokens}

    def test_a_passage_without_a_token_is_explained(self, engine: Callable[..., Turns]) -> None:
        turns = engine("answer_none")
        number = turns.ask("explain", [{"question": "who?", "context": ""}])
        turns.turns(number)
        (explained,) = turns.answer(number)
        assert explained["answer"]["answer"] == ""
        assert len(explained["texts"]) == len(explained["attributions"]) > 0

    def test_attention_is_told_on_request(self, engine: Callable[..., Turns]) -> None:
        turns = engine("classify")
        with_maps = turns.ask("explain", ["good film"], attention=True)
        without = turns.ask("explain", ["good film"])
        turns.turns(with_maps, without)
        (explained,) = turns.answer(with_maps)
        maps = np.array(explained["attention"])
        assert maps.shape == (2, 4, 4)
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
        assert turns.answer(without)[0]["attention"] is None


class TestGenerate:
    def test_continuations_are_those_of_asking_alone(
        self, engine: Callable[..., Turns], folder: Callable[[str], Path]
    ) -> None:
        turns = engine("causal_lm")
        wishes = [
            Generate("the good", Decoding(max_new_tokens=9, temperature=0)),
            Generate("film", Decoding(max_new_tokens=12, seed=3), samples=3),
            Generate("bad", Decoding(max_new_tokens=5, top_k=4, repetition_penalty=1.3)),
        ]
        asked = [turns.ask("generate", wish) for wish in wishes]
        turns.turns(*asked)
        generator = TextGenerator.of(load(folder("causal_lm")), device="cpu", template=None)
        for number, wish in zip(asked, wishes, strict=True):
            decoding = replace(wish.decoding, samples=wish.samples)
            expected = generator.generate([wish.prompt], decoding)
            for sample, own in enumerate(expected):
                pieces = [p for p in turns.pieces(number) if p.sample == sample]
                assert "".join(piece.text for piece in pieces) == own.text
                assert tuple(t for piece in pieces for t in piece.tokens) == own.tokens
                assert pieces[-1].finish == own.finish
                told = [logprob for piece in pieces for logprob in piece.logprobs]
                assert told == pytest.approx(own.logprobs, abs=1e-4)
        # They were written side by side.
        assert max(run.requests for run in turns.runs()) == 3

    def test_greedy_samples_are_all_the_same(self, engine: Callable[..., Turns]) -> None:
        turns = engine("causal_lm")
        decoding = Decoding(max_new_tokens=4, temperature=0)
        number = turns.ask("generate", Generate("the", decoding, samples=3))
        turns.turns(number)
        texts = [
            [piece.text for piece in turns.pieces(number) if piece.sample == sample]
            for sample in range(3)
        ]
        assert texts[0] == texts[1] == texts[2]
        assert texts[0]

    def test_probable_tokens_are_told_on_request(self, engine: Callable[..., Turns]) -> None:
        turns = engine("causal_lm")
        decoding = Decoding(max_new_tokens=4, temperature=0)
        number = turns.ask("generate", Generate("the", decoding, top=2))
        turns.turns(number)
        for piece in turns.pieces(number):
            assert piece.top is not None
            assert len(piece.strings) == len(piece.tokens) == len(piece.top)
            for token, logprob, best in zip(piece.tokens, piece.logprobs, piece.top, strict=True):
                assert best[0][0] == token
                assert best[0][2] == pytest.approx(logprob, abs=1e-5)
                assert len(best) == 2

    def test_predictions_and_continuations_take_turns(self, engine: Callable[..., Turns]) -> None:
        turns = engine("causal_lm", max_batch_tokens=16)
        written = turns.ask("generate", Generate("the", Decoding(max_new_tokens=20, seed=1)))
        read = turns.ask("predict", ["the good film " * 30])
        turns.turns(read)
        # While the prediction took its batches, tokens were written, and the other way round.
        kinds = [run.kind for run in turns.runs()]
        assert kinds[:6] == ["predict", "generate"] * 3
        turns.turns(written)

    def test_one_that_is_cancelled_leaves_at_the_next_token(
        self, engine: Callable[..., Turns]
    ) -> None:
        turns = engine("causal_lm")
        long = Generate("the", Decoding(max_new_tokens=1000, seed=1, stop_tokens=()))
        numbers = [turns.ask("generate", long) for _ in range(2)]
        for _ in range(3):
            turns.engine.turn()
        turns.engine.cancel(numbers[0])
        before = len(turns.pieces(numbers[0]))
        for _ in range(3):
            turns.engine.turn()
        assert len(turns.pieces(numbers[0])) == before > 0
        assert len(turns.pieces(numbers[1])) == before + 3
        assert len(turns.models["causal_lm"].live) == 1
        turns.engine.cancel(numbers[1])
        turns.engine.turn()
        assert len(turns.models["causal_lm"].live) == 0

    def test_messages_are_laid_out_as_pretune_chat_does(
        self, engine: Callable[..., Turns], folder: Callable[[str], Path]
    ) -> None:
        from pretune.inference.chat import Conversation

        decoding = Decoding(max_new_tokens=4, temperature=0)
        for task in ("instruct", "chat"):
            turns = engine(task)
            messages = [{"role": "user", "content": "the film?"}]
            number = turns.ask("generate", Generate(messages, decoding))
            template = turns.ask("generate", Generate("the film?", decoding, template=True))
            turns.turns(number, template)
            talk = Conversation(load(folder(task)), decoding, device="cpu")
            expected = "".join(part.text for part in talk.say("the film?"))
            for asked in (number, template):
                assert "".join(piece.text for piece in turns.pieces(asked)) == expected

    def test_a_message_that_is_too_long_is_refused(self, engine: Callable[..., Turns]) -> None:
        turns = engine("instruct")
        decoding = Decoding(max_new_tokens=4)
        long = [{"role": "user", "content": "a b c d " * 40}]
        wrong = [{"role": "singer", "content": "a"}]
        asked = [turns.ask("generate", Generate(m, decoding)) for m in (long, wrong)]
        turns.turns(*asked)
        assert (turns.answer(asked[0]).status, turns.answer(asked[0]).kind) == (413, "too_long")
        assert turns.answer(asked[1]).status == 422


def test_a_batch_waits_for_what_is_being_tokenized(
    engine: Callable[..., Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "GATHER", 20.0)
    turns = engine("classify")
    first = turns.ask("predict", ["good"])
    # The other one is here as well, and ready a moment later.
    later = Ask(first + 1, "classify", "predict", ["bad"], {}, time.monotonic() + 60)
    turns.engine.hold(later.id)
    thread = threading.Timer(0.05, turns.engine.accept, (later, time.monotonic()))
    thread.start()
    turns.turns(first, later.id)
    assert [run.requests for run in turns.runs()] == [2]


def test_a_reply_without_a_limit_may_fill_what_a_long_message_leaves(
    engine: Callable[..., Turns],
) -> None:
    """The window has 48 tokens: half of it would be kept for a reply of a limited length."""
    turns = engine("instruct")
    decoding = Decoding(max_new_tokens=4096, temperature=0, stop_tokens=())
    messages = [{"role": "user", "content": "good " * 17}]
    limited = turns.ask("generate", Generate(messages, decoding))
    open_ended = turns.ask("generate", Generate(messages, decoding, open_ended=True))
    turns.turns(limited, open_ended)
    assert turns.answer(limited).kind == "too_long"
    last = turns.pieces(open_ended)[-1]
    written = sum(len(piece.tokens) for piece in turns.pieces(open_ended))
    assert (last.finish, last.prompt_tokens + written) == ("length", 48)
    assert last.prompt_tokens > 24


def test_models_of_8_bits_answer_as_the_library_does(
    engine: Callable[..., Turns], folder: Callable[[str], Path]
) -> None:
    rows = unlabelled("classify", 5)
    for precision in ("int8", "bf16"):
        turns = engine("classify", precision=precision)
        asked = [turns.ask("predict", [row]) for row in rows]
        turns.turns(*asked)
        predictor = Predictor(load(folder("classify")), device="cpu", precision=precision)
        for row, number in zip(rows, asked, strict=True):
            (answer,) = turns.answer(number)
            (expected,) = predictor.predict(predictor.records([row]))
            # Rounded to 8 bits, a text is not quite the same beside others as alone.
            assert answer["scores"] == pytest.approx(expected.to_dict()["scores"], abs=0.05)


def test_requests_whose_time_is_over_are_dropped(engine: Callable[..., Turns]) -> None:
    turns = engine("classify")
    late = turns.ask("predict", ["good"], seconds=0.02)
    time.sleep(0.03)
    other = turns.ask("predict", ["bad"])
    turns.turns(other)
    assert not [m for m in turns.told if isinstance(m, Done | Failed) and m.id == late]
    assert turns.runs()[0].requests == 1
    assert turns.engine._held == turns.engine._cancelled == set()


def test_requests_that_are_cancelled_are_not_computed(engine: Callable[..., Turns]) -> None:
    turns = engine("classify")
    gone, stays = turns.ask("predict", ["good"]), turns.ask("predict", ["bad"])
    turns.engine.cancel(gone)
    turns.engine.cancel(12345)
    turns.turns(stays)
    assert turns.runs()[0].requests == 1
    assert turns.engine._held == turns.engine._cancelled == set()


@pytest.mark.parametrize("task", list(CASES))
def test_a_model_says_what_it_can_do(
    task: str, engine: Callable[..., Turns], folder: Callable[[str], Path]
) -> None:
    model = engine(task).models[task]
    model.probe()
    served = model.served
    assert served.task == task.split("_")[0] or task in ("mask_lm", "causal_lm") or "_" in task
    assert "predict" in served.abilities
    writes = task in ("causal_lm", "chat", "instruct", "dpo", "ppo", "grpo", "rloo")
    assert ("generate" in served.abilities) == writes
    assert ("chat" in served.abilities) == (writes and task != "causal_lm")
    assert ("fill" in served.abilities) == task.startswith("mask_lm")
    assert served.parameters == sum(p.numel() for p in load(folder(task)).model.parameters())


def test_candidates_of_a_translation_are_those_of_the_option(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    bundle = CASES["translate"].bundle(tiny_folder, tmp_path / "made")
    assert bundle.task is not None
    bundle.task.options = bundle.task.options.model_copy(update={"beams": 3, "max_length": 12})
    turns = Turns({"translate": saved(bundle, tmp_path / "model")})
    plain = turns.ask("predict", ["the good film"])
    several = turns.ask("predict", ["the good film"], candidates=2)
    too_many = turns.ask("predict", ["the good film"], candidates=4)
    turns.turns(plain, several, too_many)
    assert turns.answer(plain)[0]["candidates"] == []
    chosen = load(tmp_path / "model", options={"candidates": 2})
    (expected,) = Predictor(chosen, device="cpu").predict(
        records_of(Predictor(chosen, device="cpu").task, ["the good film"])
    )
    assert same(turns.answer(several)[0]["candidates"], expected.to_dict()["candidates"])
    assert len(turns.answer(several)[0]["candidates"]) == 2
    assert (turns.answer(too_many).status, turns.answer(too_many).kind) == (422, "invalid")
    turns.close()
