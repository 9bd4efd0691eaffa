"""Chat templates with a tokenizer: what ends a reply, histories that fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import pretune
from pretune.bundle.bundle import load
from pretune.data.batch import Feature
from pretune.data.records import Records
from pretune.decoding.decoding import Decoding
from pretune.decoding.text_stream import StopText, continuation
from pretune.errors import CheckpointError, DataError
from pretune.inference.chat import Conversation
from pretune.inference.generate import TextGenerator
from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions
from pretune.tasks.dialogue.layouts import MAX_TAIL_CHARS, Ends, TemplateLayout
from pretune.tasks.dialogue.replies import ReplyPrediction
from pretune.tokenizers.added_tokens import add_tokens
from pretune.tokenizers.chat_template import TEMPLATES, ChatTemplate, Message
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer
from pretune.training.run import train_recipe
from tests.tasks.chats import instruct_recipe

MARKS = ["<|im_start|>", "<|im_end|>"]
#: ChatML without `add_generation_prompt`: the mark before a reply is part of it.
ALWAYS = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
)


@cache
def tokenizer(kind: str = "bpe", marks: bool = False) -> Tokenizer:
    made = train_tokenizer([*TEMPLATES.values(), "what is said, it is 4"] * 2, kind, 320)
    if marks:
        add_tokens(made, MARKS)
    return made


def layout(
    template: str, kind: str = "bpe", *, marks: bool = False, system: str | None = None
) -> TemplateLayout:
    own = tokenizer(kind, marks)
    own.settings["chat_template"] = template
    made = TemplateLayout.of(own, system)
    assert made is not None
    return made


@pytest.mark.parametrize("template", [TEMPLATES["chatml"], ALWAYS])
def test_a_mark_after_the_content_ends_a_reply(template: str) -> None:
    own = layout(template, marks=True)
    assert own.ends() == Ends(tokens=frozenset([own.tokenizer.vocab_size - 1]))
    assert own.tokenizer.engine.token_to_id("<|im_end|>") == own.tokenizer.vocab_size - 1


def test_the_end_of_text_ends_a_reply() -> None:
    own = layout(TEMPLATES["alpaca"])
    assert own.ends() == Ends(tokens=frozenset([own.tokenizer.special_id("eos_token")]))


@pytest.mark.parametrize("template", [TEMPLATES["chatml"], ALWAYS])
def test_a_mark_of_several_tokens_ends_a_reply_as_text(template: str) -> None:
    assert layout(template).ends() == Ends(texts=("<|im_end|>",))


@pytest.mark.parametrize("after", ["''", "'\n'", "' \n\n'"])
def test_a_template_that_writes_nothing_after_a_reply_is_not_learned(after: str) -> None:
    """The model would never stop; a model that has one can still be asked."""
    own = layout("{% for m in messages %}{{ m.content + " + after + " }}{% endfor %}")
    assert own.ends() == Ends()
    task = Instruct(InstructOptions())
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    records = Records([{"messages": talk}], "here")
    with pytest.raises(CheckpointError, match="writes nothing after a reply"):
        list(task.features(records, range(1), own.tokenizer, with_targets=True))
    assert list(task.features(records, range(1), own.tokenizer, with_targets=False))


def test_alpaca_needs_a_token_that_ends_a_reply() -> None:
    plain = train_tokenizer(["it is 4"], "char")
    for chosen in ("auto", "alpaca"):
        with pytest.raises(CheckpointError, match="the template alpaca ends a reply with"):
            Instruct(InstructOptions(template=chosen)).bind(plain)
    Instruct(InstructOptions(template="chatml")).bind(plain)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_an_end_in_text_is_found_in_what_the_tokens_of_a_reply_make(kind: str) -> None:
    own = layout(TEMPLATES["chatml"], kind)
    before, reply = own.tokenizer.encode_bare(["what", "it is 4<|im_end|>\nmore"])
    gate = StopText(own.ends().texts)
    shown = gate.push(continuation(own.tokenizer, before.ids, reply.ids))
    assert gate.found
    assert shown.strip() == "it is 4"


def test_what_the_system_must_say_is_said_where_ends_are_looked_for() -> None:
    strict = "{{ raise_exception('no system') if messages[0].role != 'system' else '' }}"
    assert layout(strict + ALWAYS, marks=True, system="Be kind.").ends().tokens


def test_a_model_without_tokens_for_the_marks_ends_its_replies(tmp_path: Path) -> None:
    """Without `model.new_tokens`: in an evaluation, a prediction, a generation and a chat."""
    rows = [
        {"instruction": "Name a colour", "output": "red"},
        {"instruction": "Opposite of hot", "output": "cold"},
    ]
    recipe = instruct_recipe(tmp_path, rows, 192, **{"task.template": "chatml"})
    result = train_recipe(recipe, quiet=True)
    assert result.metrics["exact_match"] == 1.0
    made = load(tmp_path / "run")
    (actual,) = pretune.predict(made, ["Name a colour"])
    assert isinstance(actual, ReplyPrediction)
    assert actual.reply == "red"
    (written,) = pretune.generate(tmp_path / "run", "Opposite of hot", temperature=0)
    assert (written.text, written.finish) == ("cold", "stop_text")
    talk = Conversation(made, device="cpu")
    assert "".join(piece.text for piece in talk.say("Name a colour")) == "red"
    # Ends that are given stand for all of the model's own.
    endless = TextGenerator.of(made, device="cpu")
    (long,) = endless.generate(["Name a colour"], Decoding(max_new_tokens=30, stop_tokens=()))
    assert len(long.tokens) == 30


def talk(pairs: int) -> list[str]:
    return [f"what is said, it is {i}" for i in range(2 * pairs + 1)]


@pytest.mark.parametrize("system", [None, "Be kind."])
@pytest.mark.parametrize("room", [80, 200, 500, 100_000])
def test_a_history_keeps_as_many_messages_as_fit(room: int, system: str | None) -> None:
    own, texts = layout(TEMPLATES["chatml"], marks=True, system=system), talk(9)
    begin = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"

    def written(dropped: int) -> str:
        messages = [
            f"<|im_start|>{'assistant' if i % 2 else 'user'}\n{text}<|im_end|>\n"
            for i, text in enumerate(texts)
        ]
        return begin + "".join(messages[dropped:]) + "<|im_start|>assistant\n"

    sizes = {n: len(own.tokenizer.encode_bare([written(n)])[0].ids) for n in range(0, 19, 2)}
    expected = min(n for n, size in sizes.items() if size <= room)
    fitted = own.history(texts, room)
    assert (fitted.dropped, fitted.cut) == (expected, 0)
    assert own.tokenizer.decode(fitted.ids, skip_special=False) == written(expected)


def test_a_long_history_is_rendered_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    own, rendered = layout(TEMPLATES["chatml"], marks=True), list[int]()
    render = ChatTemplate.render

    def counted(self: ChatTemplate, messages: Sequence[Message], *, asked: bool = False) -> str:
        rendered.append(len(messages))
        return render(self, messages, asked=asked)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    assert own.history(talk(150), 200).dropped > 280
    assert sum(rendered) < 2_000, "messages: not the 300 that there are, for each of 150 lengths"
    rendered.clear()
    assert own.history(talk(150), 100_000).dropped == 0
    assert len(rendered) < 4 * 300, "each reply is looked for with two of them"


def test_of_a_message_that_was_not_read_to_its_beginning_no_count_is_given() -> None:
    own = layout(TEMPLATES["chatml"], marks=True)
    assert own.history(["a b " * (MAX_TAIL_CHARS // 2)], 50).cut == -1
    fitted = own.history(["a b " * 100], 50)
    whole = own.tokenizer.encode_bare([own.template.render([*user("a b " * 100)], asked=True)])
    assert fitted.cut == len(whole[0].ids) - len(fitted.ids) > 0


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


SILENT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_a_template_that_writes_nothing_to_go_on_from_is_refused() -> None:
    with pytest.raises(DataError, match="the chat template writes nothing before a reply"):
        layout(SILENT).prompt(user("a"))


def test_a_template_that_changes_the_past_is_refused_where_a_reply_is_asked_for() -> None:
    # As some drop the thoughts of earlier replies.
    fickle = (
        "{% for m in messages %}"
        "{{ m.content if m.role == 'user' or loop.last else '...' }}{% endfor %}"
    )
    messages = [*user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    with pytest.raises(DataError, match="changes the text before message 4"):
        layout(fickle).prompt(messages)


def asked_for(template: str, *talks: list[dict[str, str]], **options: Any) -> list[Feature]:
    """What `predict` reads of records."""
    rows = [{"messages": talk} for talk in talks]
    records = Records(rows, "talk.jsonl", range(1, len(rows) + 1), ("messages",))
    own = tokenizer(marks=True)
    own.settings["chat_template"] = template
    task = Instruct(InstructOptions(**options))
    actual = list(task.features(records, range(len(rows)), own, with_targets=False))
    assert all(isinstance(one, Feature) for one in actual)
    return actual  # type: ignore[return-value]


def test_what_is_asked_for_keeps_the_system_and_whole_messages() -> None:
    system = {"role": "system", "content": "Be kind."}
    messages = [
        {"role": "assistant" if i % 2 else "user", "content": text}
        for i, text in enumerate(talk(5))
    ]
    (long, short) = asked_for(
        TEMPLATES["chatml"],
        [system, *messages],
        [system, *messages[:1]],
        max_length=140,
        max_new_tokens=20,
    )
    text = tokenizer(marks=True).decode(long.tokens, skip_special=False)
    assert len(long.tokens) <= 120
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nwhat is said")
    assert text.endswith(
        "<|im_start|>user\nwhat is said, it is 10<|im_end|>\n<|im_start|>assistant\n"
    )
    assert long.truncated
    assert not short.truncated


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no') if messages[0].content == 'bad' else 'a' }}", r"refuses.*: no"),
        ("{{ '\\ud800' if messages[0].content == 'bad' else 'a' }}", r"half a character, \\ud800"),
        ("{{ '' if messages[0].content == 'bad' else 'a' }}", "writes nothing before a reply"),
    ],
)
def test_a_record_that_a_template_cannot_write_is_named(template: str, reason: str) -> None:
    with pytest.raises(
        DataError, match=rf"(?s)^talk\.jsonl, line 2, column 'messages': .*{reason}"
    ):
        asked_for(template, user("good"), user("bad"))
