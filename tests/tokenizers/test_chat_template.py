"""Chat templates beside transformers', and what they cannot do."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import transformers

from pretune.errors import CheckpointError, DataError
from pretune.tokenizers.chat_template import TEMPLATES, ChatTemplate
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Who are you? 你是谁"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "<b> & 'so'?"},
    {"role": "assistant", "content": "Yes."},
]
#: What published templates use: white space control, loop controls, namespaces, tojson, generation
#: blocks, a check of roles.
MARKED = """\
{%- set seen = namespace(system=false) %}
{% for message in messages %}
    {% if message['role'] not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('unknown role ' + message.role) }}
    {% endif %}
    {% if message.role == 'system' %}{% set seen.system = true %}{% continue %}{% endif %}
{{ bos_token if loop.first else '' }}[{{ message.role | upper }}] {{ message.content | tojson }}
    {% if message.role == 'assistant' %}
{% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}

    {% endif %}
{% endfor %}
{% if seen.system %}S{% endif %}
{% if add_generation_prompt %}[ASSISTANT] {% endif %}"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [message["content"] for message in TALK] + list(TEMPLATES.values())
    return train_tokenizer(texts, "bpe", 400)


@pytest.mark.parametrize("template", [*TEMPLATES.values(), MARKED])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("asked", [False, True])
def test_texts_are_those_of_transformers(
    tokenizer: Tokenizer, tmp_path: Path, template: str, count: int, asked: bool
) -> None:
    tokenizer.settings["chat_template"] = template
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(TALK[:count], tokenize=False, add_generation_prompt=asked)
    own = ChatTemplate.of(tokenizer)
    assert own is not None
    assert own.render(TALK[:count], asked=asked) == expected


@pytest.mark.parametrize("template", TEMPLATES.values())
def test_replies_are_what_transformers_marks(tokenizer: Tokenizer, template: str) -> None:
    own = ChatTemplate(template, tokenizer.special)
    parts = own.parts(TALK)
    assert "".join(text for text, _, _ in parts) == own.render(TALK)
    replies = [(text, i) for text, i, learned in parts if learned]
    assert [i for _, i in replies] == [2, 4]
    for (text, _), message in zip(replies, (TALK[2], TALK[4]), strict=True):
        assert text.startswith(message["content"])
        assert "###" not in text.removeprefix(message["content"]), "nothing of the next message"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ self.__init__.__globals__.__builtins__ }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{% set x = messages.append(1) %}",
        "{% import 'os' as os %}",
        "{% include '/etc/passwd' %}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ ('%s' | attr('format'))('x') | attr('__class__') | attr('__mro__') | first }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ range(1000000000) | list }}",
    ],
)
def test_a_template_runs_no_code(attack: str) -> None:
    """It is refused, or what it is after is not there."""
    found = ""
    with contextlib.suppress(DataError):
        found = ChatTemplate(attack).render(TALK)
    assert found == ""


def test_what_is_no_template_is_named() -> None:
    with pytest.raises(CheckpointError, match="not a Jinja template"):
        ChatTemplate("{% for %}")
    with pytest.raises(DataError, match="unknown role judge"):
        ChatTemplate(MARKED, {"bos_token": ""}).render([{"role": "judge", "content": ""}])


@pytest.mark.parametrize(
    "template",
    [
        "{% break %}",
        "{% for a in b %}" * 25 + "{% endfor %}" * 25,
        "{{ " + "9" * 5000 + " }}",
        "{% macro f(a, a) %}{% endmacro %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_what_does_not_compile_is_named(template: str) -> None:
    with pytest.raises(CheckpointError, match="not a Jinja template that can be read"):
        ChatTemplate(template)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match=r"writes half a character, \\ud83d"):
        ChatTemplate("{{ 'a\\ud83d' }}").render(TALK)


def test_a_template_that_changes_the_past_is_refused() -> None:
    only_last = ChatTemplate("{{ messages[-1].content }}")
    with pytest.raises(DataError, match="changes the text before message 3"):
        only_last.parts(TALK)


def test_of_several_the_default_is_taken(tokenizer: Tokenizer) -> None:
    tokenizer.settings["chat_template"] = [
        {"name": ["no", "name"], "template": "x"},
        {"name": "tools", "template": "t"},
        {"name": "default", "template": "d"},
    ]
    found = ChatTemplate.of(tokenizer)
    assert found is not None
    assert found.render(TALK) == "d"
    del tokenizer.settings["chat_template"]
    assert ChatTemplate.of(tokenizer) is None


def test_a_template_in_a_file_of_its_own_is_found(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    tokenizer.settings["chat_template"] = "old"
    tokenizer.save(tmp_path / "ours")
    del tokenizer.settings["chat_template"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs.chat_template = MARKED
    theirs.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "chat_template.jinja").is_file()
    # Both are there in what was once saved by an older version: the file counts, as it does there.
    (tmp_path / "ours" / "chat_template.jinja").write_text(MARKED, encoding="utf-8")
    for folder in ("ours", "theirs"):
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        found = ChatTemplate.of(load_tokenizer(tmp_path / folder))
        assert found is not None
        expected = again.apply_chat_template(TALK, tokenize=False)
        assert found.render(TALK) == expected != "old"


def test_a_template_file_with_a_mark_before_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(MARKED, encoding="utf-8-sig")
    assert load_tokenizer(tmp_path).settings["chat_template"] == MARKED


def test_a_template_file_that_cannot_be_read(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path)
    path = tmp_path / "chat_template.jinja"
    path.write_text(MARKED, encoding="utf-8")
    read_text = Path.read_text

    def refuse(self: Path, **how: str) -> str:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read_text(self, **how)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CheckpointError, match=r"jinja: cannot be read \(Permission denied\)"):
        load_tokenizer(tmp_path)


def test_a_template_file_that_is_no_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8"):
        load_tokenizer(tmp_path)
