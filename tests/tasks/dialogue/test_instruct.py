"""Instruction tuning: which tokens are learned, the three forms of data, figures."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import pretune
from pretune.bundle.bundle import Bundle, load, save
from pretune.data.batch import Feature, FeatureSet, Skipped
from pretune.data.readers.conversations import with_messages
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.decoding.decoding import Decoding
from pretune.errors import DataError
from pretune.inference.chat import Conversation
from pretune.inference.generate import TextGenerator
from pretune.recipe.recipe import Recipe
from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions
from pretune.tasks.dialogue.replies import (
    ASKED,
    ReplyPrediction,
    WrittenReply,
    agreement,
    rouge_l,
)
from pretune.tasks.features import featurize
from pretune.tasks.losses import IGNORED, NEXT
from pretune.tokenizers.added_tokens import add_tokens
from pretune.tokenizers.chat_template import TEMPLATES
from pretune.tokenizers.train import train_tokenizer
from pretune.training.data import read_data
from pretune.training.run import train_recipe
from pretune.training.validation import evaluate_features
from tests.tasks.chats import instruct_recipe

#: ChatML as transformers wants it, to say itself which tokens are the assistant's.
MARKED = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ message.content + '<|im_end|>\n' }}{%- endgeneration -%}
{%- else -%}{{ message.content + '<|im_end|>\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""
TALKS = [
    [
        ("user", "Who are you? 你是谁"),
        ("assistant", "A model."),
        ("user", "Sure?"),
        ("assistant", "No"),
    ],
    [("system", "Be kind."), ("user", "Add 2 and 2"), ("assistant", "It is 4 🙂.")],
    [("user", "Say something long"), ("assistant", "word " * 12 + "end")],
]


def messages(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in talk]


def records(talks: list[Any]) -> Records:
    rows = [{"messages": talk} for talk in talks]
    return Records(rows, "talk.jsonl", range(1, len(rows) + 1), ("messages",))


EVERY = records([messages(talk) for talk in TALKS])


@cache
def bundle(template: str = MARKED, **options: Any) -> Bundle:
    """A model of random weights; its tokenizer has ChatML's marks."""
    texts = [content for talk in TALKS for _, content in talk]
    tokenizer = train_tokenizer(texts * 2, "bpe", 320)
    add_tokens(tokenizer, ["<|im_start|>", "<|im_end|>"])
    tokenizer.settings["chat_template"] = template
    task = Instruct(InstructOptions(**{"max_length": 96, "max_new_tokens": 8, **options}))
    torch.manual_seed(0)
    made = load(
        "gpt2-small",
        task=task,
        tokenizer=tokenizer,
        config={"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 96},
    )
    for name, parameter in made.model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    made.model.eval()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("instruct")
    save(bundle(), place)
    return place


def theirs_of(folder: Path, talk: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Tokens and labels as transformers makes them, -100 where the assistant does not speak."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made = tokenizer.apply_chat_template(
        messages(talk), return_dict=True, return_assistant_tokens_mask=True
    )
    marked = zip(made["input_ids"], made["assistant_masks"], strict=True)
    return made["input_ids"], [token if own else -100 for token, own in marked]


@pytest.mark.parametrize("talk", TALKS)
def test_learned_is_what_transformers_marks_token_by_token(
    folder: Path, talk: list[tuple[str, str]]
) -> None:
    task, tokenizer = bundle().task, bundle().tokenizer
    assert task is not None
    actual = task.features(records([messages(talk)]), range(1), tokenizer, with_targets=True)
    (feature,) = actual
    assert isinstance(feature, Feature)
    ids, labels = theirs_of(folder, talk)
    assert feature.tokens == ids[:-1]
    assert feature.targets[NEXT] == labels[1:]
    assert IGNORED == -100


def test_the_loss_is_that_of_transformers(folder: Path) -> None:
    made = bundle()
    assert made.task is not None
    features = featurize(made.task, EVERY, made.tokenizer, evaluation=True)
    actual = evaluate_features(made.task, made.model, features)
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    nats, count = 0.0, 0
    for talk in TALKS:
        ids, labels = theirs_of(folder, talk)
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        tokens = sum(label != -100 for label in labels)
        nats, count = nats + float(loss) * tokens, count + tokens
    assert actual.metrics["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert actual.metrics["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert [s["reference"] for s in actual.details["samples"]] == [t[-1][1] for t in TALKS]


def test_a_reply_is_compared_with_the_reply_that_was_given() -> None:
    """A message of the user after it is neither the reference nor part of the history."""
    made = bundle()
    talk = records([messages([*TALKS[0], ("user", "Thanks")])])
    features = featurize(made.task, talk, made.tokenizer, evaluation=True)  # type: ignore[arg-type]
    actual = evaluate_features(made.task, made.model, features)  # type: ignore[arg-type]
    (sample,) = actual.details["samples"]
    assert sample["reference"] == "No"
    assert sample["history"] == ["Who are you? 你是谁", "A model.", "Sure?"]


class Says(transformers.LogitsProcessor):  # type: ignore[misc]
    """A model that says these tokens after a prompt."""

    def __init__(self, after: int, tokens: list[int]) -> None:
        self.after, self.tokens = after, tokens

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(scores).index_fill(
            -1, torch.tensor([self.tokens[ids.shape[1] - self.after]]), 9.0
        )


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_a_saved_model_ends_its_replies_in_transformers(folder: Path, end: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        messages(TALKS[0][:1]), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    count = asked["input_ids"].shape[1]
    said = tokenizer.encode(f"Sure{end}\n word word", add_special_tokens=False)
    made = model.generate(
        **asked, max_new_tokens=len(said), logits_processor=[Says(count, said)], do_sample=False
    )
    assert tokenizer.decode(made[0, count:]) == f"Sure{end}"


def test_no_conversation_sees_another_one() -> None:
    made = bundle()
    features = featurize(made.task, EVERY, made.tokenizer)  # type: ignore[arg-type]
    assert isinstance(features, FeatureSet)

    def gradient(which: list[int], of: int) -> torch.Tensor:
        batch = features.batch(torch.tensor(which).numpy(), sort=False)
        outputs = made.task.forward(made.model, batch)  # type: ignore[union-attr]
        parts = torch.split(outputs.scores.nats, list(outputs.select.layout.lengths))
        return parts[of]

    assert torch.allclose(gradient([0, 1, 2], 1), gradient([1], 0), atol=1e-5)
    assert torch.allclose(gradient([2, 2, 0], 2), gradient([0], 0), atol=1e-5)


@pytest.mark.parametrize("template", ["alpaca", "chatml"])
def test_built_in_templates_learn_replies_and_their_end(template: str) -> None:
    made = _with(template)
    task, tokenizer = made.task, made.tokenizer
    assert task is not None
    assert tokenizer.settings["chat_template"] == TEMPLATES[template]
    (feature,) = task.features(
        records([messages(TALKS[0])]), range(1), tokenizer, with_targets=True
    )
    assert isinstance(feature, Feature)
    learned = [label for label in feature.targets[NEXT] if label != IGNORED]
    end = {"alpaca": "<|endoftext|>", "chatml": "<|im_end|>\n"}[template]
    assert tokenizer.decode(learned, skip_special=False) == f"A model.{end}No{end}"


def _with(template: str) -> Bundle:
    texts = [content for talk in TALKS for _, content in talk]
    task = Instruct(InstructOptions(max_length=200, template=template))  # type: ignore[arg-type]
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "n_positions": 200}
    tokenizer = train_tokenizer(texts, "bpe", 300)
    return load("gpt2-small", task=task, tokenizer=tokenizer, config=sizes)


def test_what_is_too_long_is_cut_and_what_has_no_reply_is_passed_over() -> None:
    made = bundle()
    task = Instruct(InstructOptions(max_length=24))
    talks = [
        messages([("user", "a"), ("assistant", "word " * 40)]),
        messages([("user", "word " * 40), ("assistant", "a")]),
        messages([("user", "a")]),
    ]
    actual = list(task.features(records(talks), range(3), made.tokenizer, with_targets=True))
    first, second, third = actual
    assert isinstance(first, Feature)
    assert first.truncated
    assert len(first.tokens) == len(first.targets[NEXT]) == 24
    assert second == Skipped(1, "no reply within the first 24 tokens (task.max_length)")
    assert third == Skipped(2, "no reply in it")
    (evaluated, *_) = task.evaluation_features(records(talks), range(1), made.tokenizer)
    assert isinstance(evaluated, Feature)
    prompt = evaluated.tokens[: evaluated.targets[ASKED]]
    assert made.tokenizer.decode(prompt, skip_special=False).endswith("<|im_start|>assistant\n")


ALPACA = {"instruction": "Add", "input": "2 and 2", "output": "4"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (ALPACA, [("user", "Add\n\n2 and 2"), ("assistant", "4")]),
        ({**ALPACA, "input": ""}, [("user", "Add"), ("assistant", "4")]),
        ({**ALPACA, "input": None}, [("user", "Add"), ("assistant", "4")]),
        ({**ALPACA, "input": float("nan")}, [("user", "Add"), ("assistant", "4")]),
        ({**ALPACA, "input": 0, "output": 0}, [("user", "Add\n\n0"), ("assistant", "0")]),
        (SHAREGPT, [("user", "Hi"), ("assistant", "Yes")]),
        ({"messages": messages(TALKS[1])}, TALKS[1]),
        ({"prompt": "Add", "completion": "4"}, [("user", "Add"), ("assistant", "4")]),
        (
            {"prompt": messages(TALKS[0][:3]), "completion": messages(TALKS[0][3:])},  # as TRL's
            TALKS[0],
        ),
    ],
)
def test_the_forms_are_one(
    tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    actual = with_messages(read(tmp_path / "a.jsonl"), replies=True)
    assert list(actual.rows) == [{"messages": messages(expected)}]
    assert actual.columns == ("messages",)


HISTORY = [["Hi", "Yes"], ["Sure?", "No"]]
EARLIER = [("user", "Hi"), ("assistant", "Yes"), ("user", "Sure?"), ("assistant", "No")]
ANSWERED = [("user", "Add\n\n2 and 2"), ("assistant", "4")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({**ALPACA, "system": "Be brief."}, [("system", "Be brief."), *ANSWERED]),
        ({**ALPACA, "history": HISTORY}, [*EARLIER, *ANSWERED]),
        (
            {**ALPACA, "history": HISTORY, "system": "Be brief."},
            [("system", "Be brief."), *EARLIER, *ANSWERED],
        ),
        *(({**ALPACA, "history": none, "system": none}, ANSWERED) for none in (None, "", [])[:2]),
        ({**ALPACA, "history": []}, ANSWERED),
        ({**ALPACA, "history": "[]", "system": " "}, ANSWERED),
        ({**SHAREGPT, "system": "Be brief."}, [("system", "Be brief."), *EARLIER[:2]]),
        (
            {"messages": messages(EARLIER), "system": "Be brief."},
            [("system", "Be brief."), *EARLIER],
        ),
        (
            {"messages": messages([("system", "Be long."), *EARLIER]), "system": "Be brief."},
            [("system", "Be long."), *EARLIER],
        ),
        (
            {"prompt": "Hi", "completion": "Yes", "system": "Be brief."},
            [("system", "Be brief."), *EARLIER[:2]],
        ),
    ],
)
def test_system_and_earlier_turns_as_llama_factory_reads_them(
    row: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    """Its data/README.md: `history` comes before, and is learned; a system message in the
    conversation overrides the column."""
    given = Records([row], "talk.jsonl", [7], tuple(row))
    assert with_messages(given, replies=True).rows == [{"messages": messages(expected)}]


def test_the_replies_of_earlier_turns_are_learned() -> None:
    row = {**ALPACA, "history": HISTORY, "system": "Be brief."}
    data = with_messages(Records([row], "talk.jsonl", [7], tuple(row)), replies=True)
    made = bundle()
    (feature,) = Instruct(InstructOptions(max_length=96)).features(
        data, range(1), made.tokenizer, with_targets=True
    )
    assert isinstance(feature, Feature)
    learned = [token for token in feature.targets[NEXT] if token != IGNORED]
    text = made.tokenizer.decode(learned, skip_special=False)
    assert [part.strip() for part in text.split("<|im_end|>")] == ["Yes", "No", "4", ""]
    assert "Be brief." in made.tokenizer.decode(feature.tokens)


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (["Hi", "Yes"], "item 1: expected a question and its reply, both texts, found a str"),
        ([["Hi"]], "item 1: expected a question and its reply, both texts, found a list of 1"),
        ([["Hi", "Yes"], ["Hi", 3]], "item 2: expected a question and its reply"),
        ("Hi", "expected a list of pairs, found a str"),
    ],
)
def test_a_history_of_another_form_is_named(history: Any, said: str) -> None:
    row = {**ALPACA, "history": history}
    with pytest.raises(DataError) as caught:
        with_messages(Records([row], "talk.jsonl", [7], tuple(row)), replies=True)
    assert caught.value.message.startswith("talk.jsonl, line 7, column 'history'")
    assert said in caught.value.message


EMPTY: list[dict[str, Any]] = [
    {**ALPACA, "output": ""},
    {**ALPACA, "output": " "},
    {**ALPACA, "output": None},
    {**ALPACA, "output": float("nan")},
    {**ALPACA, "instruction": "", "input": ""},
    {**ALPACA, "history": [["Hi", ""]]},
    {"messages": messages([("user", "a"), ("assistant", " ")])},
    {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "a"}]},
    {"prompt": "a", "completion": ""},
]


@pytest.mark.parametrize("row", EMPTY)
def test_records_with_an_empty_message_are_left_out_and_counted(row: dict[str, Any]) -> None:
    full = {"messages": messages(TALKS[1])}
    if "messages" not in row:
        full = dict.fromkeys(row, "x") if "conversations" not in row else SHAREGPT
        full = {k: v for k, v in full.items() if k != "history"}
    given = Records([full, row, full, row], "talk.jsonl", [1, 3, 5, 7], tuple(row))
    read = with_messages(given, replies=True)
    assert (len(read), list(read.lines or ())) == (2, [1, 5])
    (note,) = read.notes
    assert note.startswith(
        "2 of 4 records left out for an empty message; the first: talk.jsonl, line 3, column '"
    )
    with pytest.raises(DataError, match=r"talk\.jsonl, line 3.*an empty (reply|message)"):
        with_messages(given.take([1]), replies=True)


def test_an_empty_question_keeps_its_place_where_answers_are_asked_for() -> None:
    rows = [{**ALPACA, "instruction": "", "input": ""}, ALPACA]
    given = with_messages(Records(rows, "talk.jsonl", [1, 2], tuple(ALPACA)), replies=False)
    assert [len(row["messages"]) for row in given.rows] == [0, 2]
    (row,) = with_messages(
        Records([{**ALPACA, "output": ""}], "talk.jsonl", [1], tuple(ALPACA)), replies=False
    ).rows
    assert row["messages"] == messages(ANSWERED[:1])


@pytest.mark.parametrize(
    ("columns", "message", "hint"),
    [
        (
            ("instruction", "input", "outputs"),
            "no column 'output'; it has 'instruction', 'input', 'outputs'",
            "Did you mean 'outputs'? Say which one it is with data.columns.output=COLUMN",
        ),
        (("prompt", "completions"), "no column 'completion'", "Did you mean 'completions'?"),
        (("prompt", "chosen", "rejected"), "no column 'completion'", ""),
        (
            ("Instruction", "Output"),
            "no column 'messages', 'conversations', 'instruction', 'prompt'; it has 'Instruction'",
            "Is it data.columns.instruction=Instruction?",
        ),
        (
            ("question", "answer"),
            "it has 'question', 'answer'",
            "data.columns.instruction=question",
        ),
        (("text", "label"), "it has 'text', 'label'", "Say where the conversations are"),
    ],
)
def test_columns_of_another_name(columns: tuple[str, ...], message: str, hint: str) -> None:
    given = Records([dict.fromkeys(columns, "x")], "talk.jsonl", [1], columns)
    with pytest.raises(DataError) as caught:
        with_messages(given, replies=True)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_names_of_columns_are_mapped_once(tmp_path: Path) -> None:
    row = {"question": "Add", "output": "4"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    columns = {"instruction": "question", "output": "output"}
    values = {"data.train": str(tmp_path / "a.jsonl"), "data.validation": None}
    data, _ = read_data(Recipe.load("instruct", {**values, "data.columns": columns}))
    assert isinstance(data, Records)
    assert data.rows == [{"messages": messages([("user", "Add"), ("assistant", "4")])}]


def test_a_reply_of_nought_is_one_without_targets_too() -> None:
    given = Records([{**ALPACA, "output": 0}], "talk.jsonl", [7], tuple(ALPACA))
    (row,) = with_messages(given, replies=False).rows
    assert row["messages"][-1] == {"role": "assistant", "content": "0"}


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ([("assistant", "a")], "item 1: roles out of order: 'assistant' at the beginning"),
        ([("user", "a"), ("user", "b")], "item 2: roles out of order: 'user' after 'user'"),
        ([("user", "a"), ("system", "b")], "'system' after 'user', expected assistant"),
        ([("usr", "a")], "the role 'usr' is not known\n  Did you mean 'user'?"),
        ([("user", "a"), ("assistant", " ")], "item 2: an empty reply"),  # with no other record
        ([("user", "")], "item 1: an empty message"),
        ([], "an empty message"),
    ],
)
def test_what_is_no_conversation_is_named(talk: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(DataError) as caught:
        with_messages(records([messages(talk)]), replies=True)
    assert str(caught.value).startswith("talk.jsonl, line 1, column 'messages'")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {**ALPACA, "output": " "},
        {**ALPACA, "output": None},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": None},
        {"messages": 3},
    ],
)
def test_other_mistakes_are_named(row: dict[str, Any]) -> None:
    given = Records([row], "talk.jsonl", [7], tuple(row))
    with pytest.raises(DataError, match=r"talk\.jsonl, line 7"):
        with_messages(given, replies=True)


def slow_lcs(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + slow_lcs(first[:-1], second[:-1])
    return max(slow_lcs(first[:-1], second), slow_lcs(first, second[:-1]))


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_rouge_l_by_its_definition(first: list[str], second: list[str]) -> None:
    common = slow_lcs(tuple(first), tuple(second))
    expected = 0.0
    if common:
        precision, recall = common / len(second), common / len(first)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(" ".join(first), " ".join(second)) == pytest.approx(expected)


def test_rouge_l_and_exact_match_of_texts() -> None:

    # Lin 2004's example: "police kill the gunman" against "police killed the gunman": 3 of 4.
    assert rouge_l("police killed the gunman", "police kill the gunman") == 0.75
    assert rouge_l("今天很好", "今天好") == pytest.approx(2 * 3 / 7)
    actual = agreement([WrittenReply([], "The Cat.", "cat"), WrittenReply([], "dog", "cat")])
    assert actual["exact_match"] == 0.5


def test_generate_and_chat_ask_with_the_template() -> None:
    made = bundle()
    writer = TextGenerator.of(made, device="cpu")
    text = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    ids = made.tokenizer.encode_bare([text])[0].ids
    assert writer.prompt("Who?") == ids
    assert TextGenerator.of(made, template=None, device="cpu").prompt("Who?") != ids
    talk = Conversation(made, Decoding(max_new_tokens=4, seed=2), device="cpu")
    assert talk.fit("Who?").ids == ids
    "".join(piece.text for piece in talk.say("Who?"))
    if talk.turns:
        text = text + talk.turns[1] + "<|im_end|>\n" + text
        assert made.tokenizer.decode(talk.fit("Who?").ids, skip_special=False) == text
    stop = made.tokenizer.engine.token_to_id("<|im_end|>")
    assert stop in writer._stop_tokens


@given(message=st.text("ab ", max_size=300).map(lambda text: text + "!"), room=st.integers(40, 90))
def test_a_history_keeps_the_template_and_the_end_of_the_message(message: str, room: int) -> None:
    made = bundle()
    layout = made.task.layout(made.tokenizer)  # type: ignore[union-attr]
    fitted = layout.history(["a" * 50, "b" * 50, message], room)
    text = made.tokenizer.decode(fitted.ids, skip_special=False)
    assert len(fitted.ids) <= room
    assert text.startswith("<|im_start|>user\n")
    assert text.endswith("!<|im_end|>\n<|im_start|>assistant\n")
    assert fitted.dropped in (0, 2)


def test_is_trained_saved_and_asked(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a colour", "input": "", "output": "red"},
        {"instruction": "Add", "input": "1 and 1", "output": "two"},
        {"instruction": "Opposite", "input": "hot", "output": "cold"},
    ]
    recipe = instruct_recipe(tmp_path, rows, 96)
    result = train_recipe(recipe, quiet=True)
    assert result.metrics["exact_match"] == result.metrics["rouge_l"] == 1.0
    made = load(tmp_path / "run")
    actual = pretune.predict(made, ["Name a colour", {"messages": "Add\n\n1 and 1"}])
    assert all(isinstance(answer, ReplyPrediction) for answer in actual)
    assert [answer.to_dict()["reply"] for answer in actual] == ["red", "two"]
    (written,) = pretune.generate(tmp_path / "run", "Opposite\n\nhot", temperature=0)
    assert written.text == "cold"
