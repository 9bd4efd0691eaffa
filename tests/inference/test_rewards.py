"""Rewards: of models as `predict` gives them, of functions and rules by hand; what is refused."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

import pretune
from pretune.bundle import task_file
from pretune.bundle.bundle import load, save
from pretune.errors import CheckpointError, DataError, Note, PretuneError, RecipeError, RunError
from pretune.inference import rewards
from pretune.inference.rewards import reward_function
from pretune.tasks.alignment.reward import Reward, RewardOptions
from pretune.tasks.alignment.reward_spec import FunctionReward, RewardPart, RewardSpec, names_of
from pretune.tasks.base import AnyTask, TaskOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.classification.multilabel import Multilabel, MultilabelOptions
from pretune.tasks.regression.regress import Regress, RegressOptions
from tests.tasks.alignment.preferences import SIZES, answering

PROMPTS = ["the film?", "good or bad?", "see", "x"]
REPLIES = ["good good film", "bad", "", "the film is un"]
RECORDS: list[dict[str, Any]] = [{"answer": a} for a in ("good good film", "no", "", "y")]
LABELS = ["bad", "good", "1"]


@pytest.fixture(scope="module")
def folder_of(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, AnyTask], str]:
    """Saves models with heads of random weights."""

    def make(base: str, task: AnyTask) -> str:
        torch.manual_seed(0)
        if base == "bert":
            bundle = load(tiny_folder, task=task)
        else:
            bundle = load(
                "gpt2-small", task=task, tokenizer=answering().tokenizer, config=SIZES, dropout=0.5
            )
        with torch.no_grad():
            for name, parameter in bundle.model.named_parameters():
                if not name.startswith("backbone."):
                    parameter.normal_(std=0.3)
        folder = tmp_path_factory.mktemp(task.name)
        save(bundle, folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def classifier(folder_of: Callable[[str, AnyTask], str]) -> str:
    return folder_of("bert", Classify(ClassifyOptions(max_length=24), LABELS))


@pytest.fixture(scope="module")
def scorer(folder_of: Callable[[str, AnyTask], str]) -> str:
    return folder_of("gpt2", Reward(RewardOptions(max_length=96)))


def rewards_of(spec: object, replies: Sequence[str] = REPLIES, **more: Any) -> list[float]:
    return reward_function(spec, device="cpu", **more)(
        PROMPTS[: len(replies)], replies, RECORDS[: len(replies)]
    )


def scores(folder: str, rows: Sequence[Any]) -> list[Any]:
    return [answer.to_dict() for answer in pretune.predict(folder, rows, device="cpu")]


# By a model: as predict


@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_a_reward_model_scores_prompt_and_reply(
    base: str, folder_of: Callable[[str, AnyTask], str]
) -> None:
    task = Reward(RewardOptions(max_length=64))
    task.scale = (0.5, 2.0)
    folder = folder_of(base, task)
    expected = [own["score"] for own in scores(folder, list(zip(PROMPTS, REPLIES, strict=True)))]
    assert rewards_of({"run": folder}) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 4


def test_a_reward_model_reads_the_messages_of_a_record(scorer: str) -> None:
    talk = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello to you"},
        {"role": "user", "content": "Name a colour"},
    ]
    reward = reward_function({"run": scorer}, device="cpu")
    (whole,) = reward(["Name a colour"], ["Red"], [{"messages": talk}])
    (answered,) = reward(
        ["?"], ["Red"], [{"messages": [*talk, {"role": "assistant", "content": "Blue"}]}]
    )
    (last,) = reward(["Name a colour"], ["Red"], [{}])
    (expected,) = scores(scorer, [{"messages": talk, "completion": "Red"}])
    assert whole == answered == pytest.approx(expected["score"], abs=1e-6)
    assert last != pytest.approx(whole, abs=1e-3)


def test_a_score_of_the_reply(folder_of: Callable[[str, AnyTask], str]) -> None:
    folder = folder_of("bert", Regress(RegressOptions(max_length=24)))
    expected = [own["score"] for own in scores(folder, REPLIES)]
    assert rewards_of({"run": folder}) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("label", ["good", 1])
def test_log_odds_and_probabilities_of_a_class(classifier: str, label: Any) -> None:
    spec = {"run": classifier, "label": label}
    chances = [own["scores"][str(label)] for own in scores(classifier, REPLIES)]
    odds = [math.log(p / (1 - p)) for p in chances]
    assert rewards_of(spec) == pytest.approx(odds, abs=1e-5)
    assert rewards_of({**spec, "value": "probability"}) == pytest.approx(chances, abs=1e-6)


def test_log_odds_of_one_of_several_labels(folder_of: Callable[[str, AnyTask], str]) -> None:
    folder = folder_of("bert", Multilabel(MultilabelOptions(max_length=24), LABELS))
    chances = [own["scores"]["bad"] for own in scores(folder, REPLIES)]
    odds = [math.log(p / (1 - p)) for p in chances]
    spec = {"run": folder, "label": "bad"}
    assert rewards_of(spec) == pytest.approx(odds, abs=1e-5)
    assert rewards_of({**spec, "value": "probability"}) == pytest.approx(chances, abs=1e-6)


def test_log_odds_stay_finite_where_a_probability_is_1() -> None:
    logits = torch.tensor([[200.0, -200.0]])
    assert rewards._class_score(logits, 0, "log_odds").tolist() == [400.0]
    assert rewards._class_score(logits, 0, "probability").tolist() == [1.0]


def test_prompt_and_reply_as_one_text_and_as_a_pair(
    classifier: str, folder_of: Callable[[str, AnyTask], str]
) -> None:
    for between, expected in ((" ", "the film? good good film"), ("", "the film?good good film")):
        spec = {"run": classifier, "label": "good", "text": "both", "value": "probability"}
        (own,) = scores(classifier, [expected])
        got = rewards_of({**spec, "between": between}, REPLIES[:1])
        assert got == pytest.approx([own["scores"]["good"]], abs=1e-6)
    paired = folder_of("bert", Classify(ClassifyOptions(max_length=24, pair=True), LABELS))
    (own,) = scores(paired, [(PROMPTS[0], REPLIES[0])])
    got = rewards_of({"run": paired, "label": "good", "value": "probability"}, REPLIES[:1])
    assert got == pytest.approx([own["scores"]["good"]], abs=1e-6)
    with pytest.raises(CheckpointError, match="reads pairs of texts"):
        rewards_of({"run": paired, "label": "good", "text": "reply"})


def test_a_decoder_has_to_be_told_what_an_empty_reply_is_worth(
    folder_of: Callable[[str, AnyTask], str],
) -> None:
    folder = folder_of("gpt2", Classify(ClassifyOptions(max_length=24), LABELS))
    spec = {"run": folder, "label": "good"}
    with pytest.raises(CheckpointError, match="a gpt2 model gives an empty reply no score"):
        reward_function(spec, device="cpu")
    told = rewards_of({**spec, "empty": -5})
    (own,) = scores(folder, REPLIES[:1])
    assert told[2] == -5
    chance = own["scores"]["good"]
    assert told[0] == pytest.approx(math.log(chance / (1 - chance)), abs=1e-5)  # no dropout
    assert rewards_of({**spec, "empty": -5}, [" ", "\n"]) == [-5, -5]
    assert len(rewards_of({**spec, "text": "both"})) == 4


def test_what_is_cut_is_told_once(classifier: str) -> None:
    reward = reward_function({"run": classifier, "label": "good"}, device="cpu")
    with pytest.warns(Note, match="had more than 24 tokens; the rest was cut"):
        reward(PROMPTS[:1], ["good " * 40], RECORDS[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reward(PROMPTS[:1], ["good " * 40], RECORDS[:1])


def test_loading_draws_no_random_numbers(scorer: str) -> None:
    before = torch.get_rng_state()
    rewards_of({"run": scorer})
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "the reward is that of a label; which label is it\\?\n  It knows: bad, good, 1."),
        ({"label": "god"}, "no label 'god'\n  Did you mean 'good'\\?"),
    ],
)
def test_labels_that_a_classifier_lacks(
    classifier: str, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        rewards_of({"run": classifier, **spec})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"label": "good"}, "a reward model has one score, and nothing for 'label'"),
        ({"value": "probability"}, "nothing for 'value'"),
        ({"text": "reply"}, "a reward model reads the prompt and the reply"),
    ],
)
def test_a_reward_model_has_no_labels(scorer: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        rewards_of({"run": scorer, **spec})


def test_models_that_give_no_reward(
    tiny_folder: Path, tmp_path: Path, folder_of: Callable[[str, AnyTask], str]
) -> None:
    save(answering(), tmp_path)
    with pytest.raises(CheckpointError, match="trained for the task instruct, which gives a reply"):
        rewards_of({"run": str(tmp_path)})
    with pytest.raises(RunError, match="a bare bert model, not trained for a task"):
        rewards_of({"run": str(tiny_folder)})
    lone = folder_of("bert", Classify(ClassifyOptions(max_length=24), ["good"]))
    with pytest.raises(CheckpointError, match="only one label"):
        rewards_of({"run": lone, "label": "good"})
    with pytest.raises(PretuneError, match="the reward's model nowhere cannot be loaded"):
        rewards_of({"run": "nowhere"})


# By a Python function


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"rewards_of_{tmp_path.name}"

    def write(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


@pytest.mark.parametrize(
    ("parameters", "expression"),
    [
        ("texts", "texts"),
        ("replies", "replies"),
        ("replies, prompts", "replies"),
        ("completions, prompts=None, **more", "completions"),
        ("asked, texts", "texts"),
        ("asked, texts, rows", "texts"),
        ("texts, scale=1.0", "texts"),
        ("*, replies, records", "replies"),
    ],
)
def test_functions_get_what_their_parameters_ask_for(
    module: Callable[[str], str], parameters: str, expression: str
) -> None:
    name = module(f"def score({parameters}):\n    return [len(own) for own in {expression}]\n")
    assert rewards_of(f"{name}:score") == [float(len(reply)) for reply in REPLIES]


def test_functions_get_prompts_and_records(module: Callable[[str], str]) -> None:
    name = module(
        "class Judge:\n"
        "    @staticmethod\n"
        "    def score(prompts, replies, records):\n"
        "        prompts.sort()\n"  # lists of its own
        "        return [r['answer'] == reply for r, reply in zip(records, replies)]\n"
    )
    prompts = list(PROMPTS)
    reward = reward_function(f"{name}:Judge.score", device="cpu")
    assert reward(prompts, REPLIES, RECORDS) == [1.0, 0.0, 1.0, 0.0]
    assert prompts == PROMPTS


def test_a_function_cannot_change_the_data(module: Callable[[str], str]) -> None:
    name = module(
        "def f(replies, records):\n"
        "    for record in records:\n"
        "        record.pop('answer'), record['messages'].clear()\n"
        "    return [0.0] * len(replies)\n"
    )
    rows = [
        {"answer": reply, "messages": [{"role": "user", "content": "?"}]} for reply in REPLIES[:2]
    ]
    own = reward_function([f"{name}:f", {"exact": "answer"}], device="cpu")
    assert own(PROMPTS[:2], REPLIES[:2], rows) == [1.0, 1.0]
    assert all(len(row["messages"]) == 1 for row in rows)


@pytest.mark.parametrize(
    "made",
    [
        "np.arange(len(texts), dtype=np.float32)",
        "torch.arange(len(texts)).float().requires_grad_()",
        "(float(i) for i in range(len(texts)))",
        "[torch.tensor(float(i)) for i in range(len(texts))]",
        "[np.float32(i) for i in range(len(texts))]",
    ],
)
def test_numbers_of_any_kind(module: Callable[[str], str], made: str) -> None:
    name = module(f"import numpy as np, torch\ndef f(texts):\n    return {made}\n")
    got = rewards_of(f"{name}:f")
    assert got == [0.0, 1.0, 2.0, 3.0]
    assert {type(value) for value in got} == {float}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[0.0] * 3", "gave 3 values for 4 replies"),
        ("[0.0] * 3 + [float('nan')]", r"gave nan for reply 4 \('a\\x1b\[31m\\nb{73}\.\.\.'\)"),
        ("[0.0, -float('inf'), 0.0, 0.0]", r"gave -inf for reply 2 \('bad'\)"),
        ("[0.0, 1e16, 0.0, 0.0]", r"gave 1e\+16 for reply 2"),
        ("[0.0]", "gave 1 value for 4 replies"),
        ("[0.0, 10**400, 0.0, 0.0]", "gave inf for reply 2"),
        ("[0.0, None, 0.0, 0.0]", "gave nothing for reply 2"),
        ("[0.0, '1', 0.0, 0.0]", "gave a str for reply 2"),
        ("[[0.0]] * 4", "gave a list for reply 1"),
        ("1.0", "gave a float for 4 replies"),
        ("None", "gave nothing for 4 replies"),
        ("'1234'", "gave a str for 4 replies"),
        ("dict.fromkeys(texts, 1.0)", "gave a dict for 4 replies"),
    ],
)
def test_what_is_no_reward_names_the_reply(
    module: Callable[[str], str], given: str, message: str
) -> None:
    name = module(f"def f(texts):\n    return {given}\n")
    replies = [*REPLIES[:3], "a\x1b[31m\n" + "b" * 100]
    with pytest.raises(RunError, match=f"the reward function {name}:f {message}"):
        rewards_of(f"{name}:f", replies)


def test_an_exception_names_the_reply_and_the_line(module: Callable[[str], str]) -> None:
    name = module("def f(texts):\n\n    return [1 / len(text) for text in texts]\n")
    with pytest.raises(RunError) as raised:
        rewards_of(f"{name}:f")
    assert raised.value.message == (
        f"the reward function {name}:f failed at reply 3 (''): ZeroDivisionError: division by zero "
        f"({name}.py, line 3)"
    )
    name = module("def f(texts):\n    for text in texts:\n        yield 1 / len(text)\n")
    with pytest.raises(RunError, match=r"failed at reply 3 \(''\).*line 3"):
        rewards_of(f"{name}:f")
    # One that only all of them together bring about, and an attempt to end the program.
    name = module("def f(texts):\n    if len(texts) > 1:\n        exit(0)\n    return [0.0]\n")
    with pytest.raises(RunError, match=r"failed at 4 replies: SystemExit: 0 \(.*, line 3\)"):
        rewards_of(f"{name}:f")


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("", "f", "no 'f' in .*py\n  It is empty"),
        ("def score(texts): ...", "scor", "Did you mean 'score'"),
        ("f = 3", "f", "an int, not a function"),
        ("import nowhere_at_all", "f", "cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "f", "cannot be imported: ZeroDivisionError: division by zero .*line 1"),
        ("def f(: ...", "f", "cannot be imported: SyntaxError"),
        ("def f(): ...", "f", r"takes \(\)\n  It has to take \(replies\)"),
        ("def f(*texts): ...", "f", r"takes \(\*texts\)"),
        ("def f(replies, other): ...", "f", r"takes \(replies, other\)"),
        ("def f(a, b, c, d): ...", "f", "takes"),
        ("def f(*, texts): ...", "f", "takes"),
        ("f = dict", "f", "takes"),
    ],
)
def test_functions_that_cannot_be_used(
    module: Callable[[str], str], text: str, function: str, message: str
) -> None:
    name = module(text + "\n")
    with pytest.raises(RecipeError, match=message):
        rewards_of(f"{name}:{function}")


def test_a_module_that_is_not_there(module: Callable[[str], str]) -> None:
    with pytest.raises(RecipeError, match=r"no module is called 'my_rewardz'\n.*my_rewardz/a.py"):
        rewards_of("my_rewardz.a:f")


# A checkpoint never names code to run


class _Options(TaskOptions):
    name: str = "rewarded"
    beams: int = 1
    reward: RewardSpec


class _Rewarded:
    name = "rewarded"
    options_type = _Options

    def __init__(self, options: _Options) -> None:
        self.options = options

    def with_state(self, _: Mapping[str, Any]) -> Any:
        return self

    def state(self) -> dict[str, Any]:
        return {}

    def output_meaning(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("form", ["marks:f", {"function": "marks:f"}, ["marks:f", {"length": 3}]])
def test_a_checkpoint_names_no_code(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_file, "saved_task_class", lambda *_: _Rewarded)
    saved = {"options": {"name": "rewarded", "reward": form}, "state": {}}
    (tmp_path / "pretune.json").write_text(json.dumps(saved), encoding="utf-8")
    task, _ = task_file.trained_task(tmp_path, {}, None)  # type: ignore[arg-type]
    # Other options are changed, and it is saved and read again: still it is not run.
    changed: Any = task_file.with_options(task, {"beams": 2})  # type: ignore[arg-type]
    again = _Options.model_validate(json.loads(changed.options.model_dump_json()))
    for options in (task.options, changed.options, again):  # type: ignore[union-attr]
        with pytest.raises(CheckpointError, match=r"what a checkpoint\s+names is not run") as why:
            reward_function(options.reward, device="cpu")
        assert "--set reward=marks:f" in str(why.value)
    assert "marks" not in sys.modules
    # Named by a person, it is.
    named: Any = task_file.with_options(task, {"reward": "marks:f"})  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "marks", SimpleNamespace(f=lambda texts: [1.0] * len(texts)))
    assert reward_function(named.options.reward, device="cpu")(["a"], ["b"], [{}]) == [1.0]


def test_a_recipe_does_name_code() -> None:
    options = _Options.model_validate({"reward": "a:b"})
    (part,) = options.reward
    assert isinstance(part, FunctionReward)
    assert options.model_dump(mode="json")["reward"] == [
        {"weight": 1.0, "name": None, "function": "a:b"}
    ]


# By rules, and sums


def test_the_column_of_a_record() -> None:
    given = ["4", " 4\n", "four", "true", "0.5"]
    columns: list[Any] = ["4", 4, " four", True, 0.5]
    reward = reward_function({"exact": "answer"}, device="cpu")
    assert reward(["?"] * 5, given, [{"answer": own} for own in columns]) == [1.0] * 5
    assert reward(["?"], ["4"], [{"answer": 4.0}]) == [1.0]
    assert reward(["?"], ["Four"], [{"answer": "four"}]) == [0.0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answers": "4"}, r"reply 2 \('5'\) has no column 'answer'\n  Did you mean 'answers'"),
        ({}, "It has no columns"),
        ({"answer": None}, "has nothing there"),
        ({"answer": math.nan}, "has NaN there"),
        ({"answer": ["4"]}, "has a list there"),
    ],
)
def test_a_column_that_records_lack(record: dict[str, Any], message: str) -> None:
    reward = reward_function({"exact": "answer"}, device="cpu")
    with pytest.raises(DataError, match=message):
        reward(["?", "?"], ["4", "5"], [{"answer": "4"}, record])


def test_expressions_are_searched_for() -> None:
    spec = {"match": r"(?i)\bgood\b.*film$"}
    assert rewards_of(spec) == [1.0, 0.0, 0.0, 0.0]


def test_an_expression_that_takes_forever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "MATCH_SECONDS", 0.05)
    with pytest.raises(RunError, match=r"took over 0.05 seconds for reply 1 \('aaa"):
        rewards_of({"match": "(a|a)+$"}, ["a" * 60 + "b"])


def test_lengths_in_characters_and_tokens() -> None:
    expected = [-abs(len(reply) - 10) / 10 for reply in REPLIES]
    assert rewards_of({"length": 10}) == expected
    tokenizer = answering().tokenizer
    counts = [len(tokenizer.encode_bare([reply])[0].ids) for reply in REPLIES]
    got = rewards_of({"length": 4, "unit": "tokens"}, tokenizer=tokenizer)
    assert got == [-abs(count - 4) / 4 for count in counts]
    with pytest.raises(RecipeError, match="no model whose tokens are counted"):
        rewards_of({"length": 4, "unit": "tokens"})


def test_a_list_is_a_weighted_sum_of_named_parts(classifier: str) -> None:
    spec = [
        {"exact": "answer", "weight": 2},
        {"length": 10, "weight": -0.5},
        {"match": "good", "name": "praise"},
        {"match": "bad"},
        {"match": "film"},
        {"run": f"{classifier}/", "label": "good"},
    ]
    reward = reward_function(spec, device="cpu")
    parts = reward.parts(PROMPTS[:2], REPLIES[:2], RECORDS[:2])
    run = Path(classifier).name
    assert [*parts] == ["exact", "length", "praise", "match", "match_2", run]
    assert parts["exact"] == [1.0, 0.0]
    weights = [2, -0.5, 1, 1, 1, 1]
    expected = np.array(weights) @ np.array([*parts.values()])
    assert reward(PROMPTS[:2], REPLIES[:2], RECORDS[:2]) == pytest.approx(expected.tolist())
    assert reward([], [], []) == []


def test_a_sum_that_overflows_names_the_reply(module: Callable[[str], str]) -> None:
    name = module("def f(texts):\n    return [1e15] * len(texts)\n")
    with pytest.raises(RunError, match=r"the sum of the rewards gave 1e\+16 for reply 1"):
        rewards_of({"function": f"{name}:f", "weight": 10})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("runs/reward", r"should be MODULE:FUNCTION.*a model is \{run: FOLDER\}"),
        ("f", "should be MODULE:FUNCTION"),
        (None, "found nothing"),
        (3, "found an int"),
        ([], "is empty: name a reward"),
        ({}, "should be MODULE:FUNCTION"),
        ({"model": "x"}, "should be MODULE:FUNCTION, {run: FOLDER}"),
        ({"exct": "answer"}, "Did you mean 'exact'"),
        ({"run": "x", "length": 3}, "has run and length: give a list of them"),
        ({"run": "x", "lable": "y"}, "a reward by run has no key 'lable'. Did you mean 'label'"),
        ({"match": "("}, "is no regular expression"),
        ({"length": 0}, "greater than or equal to 1"),
        ({"length": True}, "valid integer"),
        ({"length": 5, "weight": math.nan}, "finite number"),
        ({"run": ""}, "at least 1 character"),
        ([{"length": 5, "weight": 0}], "nothing counts"),
    ],
)
def test_specifications_that_make_no_sense(spec: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reward_function(spec, device="cpu")
    with pytest.raises(ValidationError):
        _Options.model_validate({"reward": spec})


def test_parts_are_told_apart_by_their_names() -> None:
    unnamed: list[Any] = [{"length": 3}, {"length": 9}, {"match": "a", "name": "length"}]
    reward = reward_function(unnamed, device="cpu")
    assert [part.name for part in reward.terms] == ["length_2", "length_3", "length"]
    equal = [{"length": 3, "name": "a"}, {"match": "a", "name": "a"}]
    with pytest.raises(RecipeError, match="two parts have the name 'a': give each its own"):
        reward_function(equal, device="cpu")
    # A checkpoint may be older than this rule.
    of_checkpoint = {"from_checkpoint": True}
    parts: list[RewardPart] = TypeAdapter(RewardSpec).validate_python(equal, context=of_checkpoint)
    assert names_of(parts) == ["a", "a"]
