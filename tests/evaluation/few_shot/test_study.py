"""In-context learning beside a slow reference: transformers' model, one prompt at a time."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoTokenizer

from pretune.bundle.bundle import Bundle
from pretune.data.records import Records
from pretune.decoding.decoding import Decoding
from pretune.errors import DataError, Note, PretuneError
from pretune.evaluation.few_shot.in_context import MARGIN, SCORES, find_answer
from pretune.evaluation.few_shot.result import Cell, Guess, cell_of
from pretune.evaluation.few_shot.study import draw_shots, measure, options_from
from pretune.inference.likelihood import LikelihoodScorer
from pretune.models.classics.common import ClassicLM, ClassicModel
from pretune.models.classics.nnlm import NnlmConfig, NnlmModel
from pretune.models.classics.rnn import RnnConfig, RnnModel
from pretune.models.families import FAMILIES
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from tests.inference.conftest import CONTEXT, Pair
from tests.inference.test_likelihood import one_by_one

TEXTS = [
    "The film",
    "a small bad film",
    "once",
    "stories",
    "good",
    "time was",
    "upon a time",
    "the",
]
LABELS = ["1", "0", "1", "0", "0", "1", "1", "1"]
ANSWERS = {"0": "bad", "1": "good film"}
TEMPLATE = "{text}\nIt: {answer}"


def records(texts: list[str], labels: list[Any], name: str = "data.tsv") -> Records:
    rows = [{"text": t, "label": v} for t, v in zip(texts, labels, strict=True)]
    return Records(rows, name, range(2, len(rows) + 2), ("text", "label"))


DATA = records(TEXTS, LABELS)
TRAIN = records(["good", "bad", "was", "film"], ["1", "0", "1", "0"], "train.tsv")


def ask(pair: Pair, data: Records = DATA, train: Records | None = TRAIN, **options: Any) -> Any:
    chosen = {"shots": (0, 2), "seeds": (0, 1), "template": TEMPLATE, "answers": ANSWERS, **options}
    return measure(pair.bundle, data, train, options_from(chosen), device="cpu")


@torch.inference_mode()
def reference(pair: Pair, prompt: str, answer: str) -> list[float]:
    """Log-probabilities of an answer's tokens: of one text, with transformers' model."""
    engine = pair.bundle.tokenizer.engine
    kept = prompt.rstrip()
    begin = len(engine.encode(kept).ids) if kept else 0
    ids = engine.encode(prompt + answer).ids
    if not kept:
        begin, ids = 1, [pair.bundle.tokenizer.special_id("eos_token"), *ids]
    logs = pair.theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logs[i - 1, ids[i]]) for i in range(begin, len(ids))]


def shots_of(cell: Cell) -> str:
    """The text of the examples, by the draw itself."""
    rows = draw_shots([int(row["label"]) for row in TRAIN.rows], cell.shots, cell.seed)
    texts = [f"{TRAIN.rows[i]['text']}\nIt: {ANSWERS[TRAIN.rows[i]['label']]}" for i in rows]
    return "".join(text + "\n\n" for text in texts)


def expected_scores(pair: Pair, shots: str, text: str, kind: str) -> list[float]:
    answers = list(ANSWERS.values())

    def sums(prompt: str) -> np.ndarray[Any, Any]:
        return np.array([sum(reference(pair, prompt, answer)) for answer in answers])

    def chances(prompt: str) -> np.ndarray[Any, Any]:
        return np.exp(sums(prompt)) / np.exp(sums(prompt)).sum()

    prompt = f"{shots}{text}\nIt: "
    if kind == "mean":
        return [float(np.mean(reference(pair, prompt, answer))) for answer in answers]
    if kind in ("per_character", "per_byte"):
        return [float(s) / len(a) for s, a in zip(sums(prompt), answers, strict=True)]
    if kind == "calibrated":
        free = [chances(f"{shots}{empty}\nIt: ") for empty in ("N/A", "[MASK]", "")]
        return np.log(chances(prompt) / np.mean(free, axis=0)).tolist()
    if kind == "pmi":
        return (sums(prompt) - sums("It: ")).tolist()
    return sums(prompt).tolist()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("bpe", kind) for kind in SCORES if kind != "generate"),
        ("llama", "calibrated"),
        ("mistral", "likelihood"),
    ],
)
def test_scores_are_those_of_one_prompt_at_a_time(
    request: pytest.FixtureRequest, name: str, kind: str
) -> None:
    pair: Pair = request.getfixturevalue(name)
    result = ask(pair, score=kind)
    assert [(cell.shots, cell.seed) for cell in result.cells] == [(0, 0), (2, 0), (2, 1)]
    for cell in result.cells:
        shots = shots_of(cell)
        for text, guess in zip(TEXTS, cell.guesses, strict=True):
            if guess.shots < cell.shots:  # another test
                continue
            expected = expected_scores(pair, shots, text, kind)
            assert list(guess.scores.values()) == pytest.approx(expected, abs=1e-4)
            assert guess.answer == list(ANSWERS.values())[int(np.argmax(expected))]


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["likelihood", "calibrated"])
def test_a_conversation_is_laid_out_as_transformers_does(llama: Pair, kind: str) -> None:
    theirs, answers = AutoTokenizer.from_pretrained(llama.folder), list(ANSWERS.values())

    def scores(examples: list[dict[str, str]], text: str) -> np.ndarray[Any, Any]:
        """Of each answer as the reply, before the end of the turn, in the whole conversation."""
        talk = [*examples, {"role": "user", "content": f"{text}\nIt:"}]
        asked = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
        sums = []
        for answer in answers:
            reply = {"role": "assistant", "content": answer}
            ids = theirs.apply_chat_template([*talk, reply], return_dict=False)
            assert ids[: len(asked)] == asked
            logs = llama.theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
            last = ids.index(theirs.eos_token_id, len(asked))
            sums.append(sum(float(logs[i - 1, ids[i]]) for i in range(len(asked), last)))
        if kind == "likelihood":
            return np.array(sums)
        return np.array(sums) - np.logaddexp.reduce(sums)

    for cell in ask(llama, score=kind, chat=True, seeds=(0,)).cells:
        rows = draw_shots([int(row["label"]) for row in TRAIN.rows], cell.shots, cell.seed)
        examples = []
        for row in (TRAIN.rows[i] for i in rows):
            examples.append({"role": "user", "content": f"{row['text']}\nIt:"})
            examples.append({"role": "assistant", "content": ANSWERS[row["label"]]})
        expected = np.array([scores(examples, text) for text in TEXTS])
        if kind == "calibrated":
            free = [np.exp(scores(examples, empty)) for empty in ("N/A", "[MASK]", "")]
            expected -= np.log(np.mean(free, axis=0))
        found = [list(guess.scores.values()) for guess in cell.guesses]
        assert np.array(found) == pytest.approx(expected, abs=1e-4)
        assert cell.fewest == cell.shots


def test_a_conversation_needs_a_template(bpe: Pair) -> None:
    with pytest.raises(PretuneError, match="the model's tokenizer has no chat template"):
        ask(bpe, chat=True)


def test_bytes_are_not_characters(bpe: Pair) -> None:
    answers = {"0": "好", "1": "été"}
    found = {kind: ask(bpe, score=kind, answers=answers) for kind in ("per_byte", "per_character")}
    per_byte, per_character = (f.cells[0].guesses[0].scores for f in found.values())
    assert per_character["好"] == pytest.approx(3 * per_byte["好"], rel=1e-6)
    assert per_character["été"] == pytest.approx(5 / 3 * per_byte["été"], rel=1e-6)


def test_figures_are_those_of_scikit_learn(bpe: Pair) -> None:
    for cell in ask(bpe).cells:
        truth = [guess.truth for guess in cell.guesses]
        answers = [guess.answer for guess in cell.guesses]
        assert truth == [ANSWERS[label] for label in LABELS]
        assert cell.macro_f1 == pytest.approx(f1_score(truth, answers, average="macro"))
        assert cell.accuracy == np.mean(np.array(truth) == np.array(answers))
        for name, share in cell.shares.items():
            assert share == answers.count(name) / len(answers)


def test_no_answer_is_a_wrong_one() -> None:
    guesses = [Guess("a", "x", "x", 0), Guess("b", "x", None, 0), Guess("c", "y", None, 0)]
    cell = cell_of(0, 0, guesses, ["x", "y", "z"])
    assert cell.accuracy == pytest.approx(1 / 3)
    assert cell.macro_f1 == pytest.approx((2 / 3 + 0) / 2)  # of x and y; z is nowhere
    assert cell.shares == {"x": 1 / 3, "y": 0, "z": 0, "(none)": 2 / 3}


def test_the_baseline_and_the_summary(bpe: Pair) -> None:
    result = ask(bpe)
    assert result.majority == ("good film", 5 / 8)
    saved = result.to_dict()
    cells = result.of_shots()[2]
    mean = (cells[0].accuracy + cells[1].accuracy) / 2
    assert saved["summary"]["2"]["accuracy"] == pytest.approx(mean)
    spread = abs(cells[0].accuracy - cells[1].accuracy) / math.sqrt(2)
    assert saved["summary"]["2"]["sd"] == pytest.approx(spread)
    assert len(saved["cells"][0]["predictions"]) == 8
    assert "predictions" not in result.to_dict(predictions=False)["cells"][0]


def test_examples_from_the_data_are_not_evaluated_on(bpe: Pair) -> None:
    result = ask(bpe, train=None, shots=(0, 1, 2), seeds=(0, 1))
    places = [[guess.where for guess in cell.guesses] for cell in result.cells]
    assert all(place == places[0] for place in places)  # all measurements on the same rows
    labels = [int(label) for label in LABELS]
    used = {row for seed in (0, 1) for row in draw_shots(labels, 2, seed)}
    expected = [f"data.tsv, line {i + 2}" for i in range(8) if i not in used]
    assert places[0] == expected


def test_examples_without_room_are_dropped_from_the_front(bpe: Pair) -> None:
    long = records([text + " small" for text in TEXTS], LABELS)
    result = ask(bpe, train=long, shots=(6,), seeds=(0,))
    (cell,) = result.cells
    assert 0 < cell.fewest < 6
    assert cell.shortened == len(TEXTS)
    engine = bpe.bundle.tokenizer.engine
    rows = draw_shots([int(label) for label in LABELS], 6, 0)
    parts = [f"{TEXTS[i]} small\nIt: {ANSWERS[LABELS[i]]}" for i in rows]
    for text, guess in zip(TEXTS, cell.guesses, strict=True):
        prompts = ["\n\n".join([*parts[6 - n :], f"{text}\nIt: "]) for n in range(7)]
        sizes = [len(engine.encode(p + "good film").ids) - 1 for p in prompts]
        assert guess.shots == max(n for n in range(7) if sizes[n] <= CONTEXT)
        expected = sum(reference(bpe, prompts[guess.shots], "bad"))
        assert guess.scores["bad"] == pytest.approx(expected, abs=1e-4)


def test_what_is_written_decides(bpe: Pair) -> None:
    (cell,) = ask(bpe, shots=(2,), seeds=(0,), score="generate").cells
    assert cell.shares["(none)"] == 1  # a random model writes neither
    asked = LikelihoodScorer.of(bpe.bundle, device="cpu")
    longest = max(len(asked.pair("It: ", answer).continuation) for answer in ANSWERS.values())
    decoding = Decoding(temperature=0, max_new_tokens=longest + MARGIN)
    prompts = [f"{shots_of(cell)}{text}\nIt:" for text in TEXTS]
    expected = [found.text for found in bpe.writer.generate(prompts, decoding)]
    assert [guess.text for guess in cell.guesses] == expected


def test_a_word_that_is_written_is_the_answer(bpe: Pair) -> None:
    bare = {"shots": (0,), "score": "generate"}
    texts = [guess.text or "" for guess in ask(bpe, **bare).cells[0].guesses]
    found = [match[0] for text in texts if (match := re.match(r"[a-z]+(?![^\W_])", text))]
    answers = {"0": "nothing", "1": found[0]}
    given = [guess.answer for guess in ask(bpe, **bare, answers=answers).cells[0].guesses]
    assert given == [found[0] if text.startswith(found[0]) else None for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Positive!\nReview:", "positive"),
        ("positively", None),
        ("very positive", None),
        ("negative positive", "negative"),
        ("not positive at all", "not positive"),
        ("not", "not"),
        ("好看的电影", "好看"),
        ("", None),
    ],
)
def test_an_answer_is_found_at_the_beginning(text: str, expected: str | None) -> None:
    assert find_answer(text, ["positive", "negative", "not", "not positive", "好看"]) == expected


@pytest.mark.parametrize(
    "backbone",
    [
        RnnModel(RnnConfig(vocab_size=300, embedding_size=6, hidden_size=9)),
        NnlmModel(NnlmConfig(vocab_size=300, embedding_size=5, hidden_size=7, order=20)),
    ],
    ids=["rnn", "nnlm"],
)
def test_the_classics_can_be_asked_and_have_room_for_everything(
    bpe: Pair, backbone: ClassicModel
) -> None:
    torch.manual_seed(0)
    model = ClassicLM(backbone)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    task = CausalLm(CausalLmOptions())
    family = FAMILIES[backbone.config.model_type]
    bundle = Bundle(model, bpe.bundle.tokenizer, family, task)
    result = ask(replace(bpe, bundle=bundle), shots=(4,), seeds=(0,))
    (cell,) = result.cells
    assert cell.shortened == 0
    asked = LikelihoodScorer.of(bundle, device="cpu")
    for text, guess in zip(TEXTS, cell.guesses, strict=True):
        prompt = f"{shots_of(cell)}{text}\nIt: "
        expected = [sum(one_by_one(model, asked.pair(prompt, a))) for a in ANSWERS.values()]
        assert list(guess.scores.values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"label": "lable"}, "no column 'lable' for the labels.*Did you mean 'label'"),
        ({"template": "{sentence} {answer}"}, "no column 'sentence'"),
        ({"answers": {"0": "bad", "2": "good"}}, "data.tsv, line 2, column 'label': unknown label"),
        ({"answers": ["1"]}, "answers: '1'"),
        ({"answers": {"0": "x", "1": " "}}, "none of them empty"),
        ({"score": "likelyhood"}, "Did you mean 'likelihood'"),
        ({"shots": (5,)}, "train.tsv: 4 rows to draw 5 examples from"),
        ({"shots": (1, 1)}, "repeated number"),
        ({"shots": (-1,)}, "negative"),
        ({"seeds": ()}, "seeds: expected whole numbers"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"shot": 3}, "no option 'shot'.*Did you mean 'shots'"),
    ],
)
def test_mistakes_are_named(bpe: Pair, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PretuneError, match=f"(?s){said}"):
        ask(bpe, **changes)


def test_bad_rows_are_named(bpe: Pair) -> None:
    with pytest.raises(DataError, match=r"data\.tsv, line 3, column 'label': no label there"):
        ask(bpe, records(TEXTS[:2], ["1", ""]))
    with pytest.raises(DataError, match=r"data\.tsv, line 2: .* tokens as a question"):
        ask(bpe, records(["film " * CONTEXT, "a"], ["0", "1"]))
    with pytest.raises(DataError, match="only one label, '1'"):
        ask(bpe, train=records(["a", "b"], ["1", "1"]), answers=None)
    with pytest.raises(DataError, match="all 2 rows are examples"):
        ask(bpe, records(["a", "b"], ["0", "1"]), train=None)
    with pytest.raises(DataError, match="line 2, column 'text': expected a text, found a list"):
        ask(bpe, replace(DATA, rows=[{"label": "0", "text": ["a"]}, *DATA.rows[1:]]))


@pytest.mark.parametrize("blank", [None, "", " \t"])
def test_rows_without_text_are_left_out_and_told(bpe: Pair, blank: str | None) -> None:
    rows = [{"label": "0", "text": blank}, *DATA.rows[1:]]
    with pytest.warns(Note, match="1 records without a text"):
        found = ask(bpe, replace(DATA, rows=rows))
    assert found.count == len(rows) - 1
