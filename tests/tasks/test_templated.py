"""Chat templates with a tokenizer: what ends a reply, histories that fit."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

import pretune
from pretune.decoding.stream import StopText, continuation
from pretune.infer import Decoding, TextGenerator
from pretune.infer.chat import Conversation
from pretune.recipe import Recipe
from pretune.tasks import ReplyPrediction
from pretune.tasks.bundle import load
from pretune.tasks.replies import Ends
from pretune.tasks.templated import TemplateLayout
from pretune.text import extend, train_tokenizer
from pretune.text.chat_template import TEMPLATES
from pretune.text.tokenizer import Tokenizer
from pretune.training import train_recipe

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
        extend(made, MARKS)
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


def test_a_template_that_writes_nothing_after_a_reply_names_no_end() -> None:
    assert layout("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}").ends() == Ends()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_an_end_in_text_is_found_in_what_the_tokens_of_a_reply_make(kind: str) -> None:
    own = layout(TEMPLATES["chatml"], kind)
    before, said = own.tokenizer.encode_bare(["what", "it is 4<|im_end|>\nmore"])
    gate = StopText(own.ends().texts)
    shown = gate.push(continuation(own.tokenizer, before.ids, said.ids))
    assert gate.found
    assert shown.strip() == "it is 4"


def test_what_the_system_must_say_is_said_where_ends_are_looked_for() -> None:
    strict = "{{ raise_exception('no system') if messages[0].role != 'system' else '' }}"
    assert layout(strict + ALWAYS, marks=True, system="Be kind.").ends().tokens


def test_a_model_without_tokens_for_the_marks_ends_its_replies(tmp_path: Path) -> None:
    """As with LoRA, where new tokens would not learn: evaluated, foretold, generated, said."""
    rows = [
        {"instruction": "Name a colour", "output": "red"},
        {"instruction": "Opposite of hot", "output": "cold"},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.load(
        "instruct",
        {
            "data.train": str(data),
            "data.validation": str(data),
            "model.from": "gpt2-small",
            "model.train_tokenizer": {"kind": "bpe", "vocab_size": 300},
            "model.config": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 192},
            "model.dropout": 0.0,
            "task.template": "chatml",
            "task.max_length": 192,
            "task.temperature": 0.0,
            "train.epochs": 60,
            "train.eval_every": 60,
            "train.warmup": 2,
            "train.learning_rate": 1e-2,
            "train.device": "cpu",
            "output": str(tmp_path / "run"),
        },
    )
    result = train_recipe(recipe, quiet=True)
    assert result.metrics["exact_match"] == 1.0
    made = load(tmp_path / "run")
    (found,) = pretune.predict(made, ["Name a colour"])
    assert isinstance(found, ReplyPrediction)
    assert found.reply == "red"
    (written,) = pretune.generate(tmp_path / "run", "Opposite of hot", temperature=0)
    assert (written.text, written.finish) == ("cold", "stop_text")
    talk = Conversation(made, device="cpu")
    assert "".join(piece.text for piece in talk.say("Name a colour")) == "red"
    # Ends that are given stand for all of the model's own.
    endless = TextGenerator.of(made, device="cpu")
    (long,) = endless.generate(["Name a colour"], Decoding(max_new_tokens=30, stop_tokens=()))
    assert len(long.tokens) == 30
