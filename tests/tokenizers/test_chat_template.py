"""Chat templates beside transformers', and what they cannot do."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from pretune.errors import CheckpointError, DataError
from pretune.tokenizers import template_sandbox
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


#: Templates that would run for years, or take all memory, and what is said of them.
ENDLESS = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "to an end",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}": (
        "to an end"
    ),
    "{% for a in 'ab' recursive %}{{ loop('ab') if loop.depth < 60 else '' }}{% endfor %}": (
        "to an end"
    ),
    "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}": "to an end",
    "{% for i in range(99999) %}{{ range(99999) | map('abs') | sum }}{% endfor %}": "to an end",
    "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{% set t = s[::2] %}{% endfor %}": (
        "to an end"
    ),
    "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{{ s.count('y') }}{% endfor %}": (
        "to an end"
    ),
    "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{{ 'y' in s }}{% endfor %}": "to an end",
    "{{ 'x' * 10000000000 }}": "a text or list of over",
    "{{ [1] * 10000000000 }}": "a text or list of over",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}": (
        "a text or list of over"
    ),
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}": (
        "a text or list of over"
    ),
    "{{ 'x'.center(10000000000) }}": "a text or list of over",
    "{{ '{:>10000000000}'.format(1) }}": "a text or list of over",
    "{{ '{:>{}}'.format(1, 10000000000) }}": "a text or list of over",
    "{{ '%10000000000d' % 1 }}": "a text or list of over",
    "{{ '%*d' % (10000000000, 1) }}": "a text or list of over",
    "{{ '%10000000000d' | format(1) }}": "a text or list of over",
    "{{ ('x' * 99999).replace('x', 'x' * 99999) }}": "a text or list of over",
    "{{ ('x' * 99999) | replace('x', 'x' * 99999) }}": "a text or list of over",
    "{{ ('x' * 99999).join(range(99999)) }}": "a text or list of over",
    "{{ range(99999) | join('x' * 99999) }}": "a text or list of over",
    "{{ ('\n' * 99999) | indent(99999) }}": "a text or list of over",
    "{{ messages | tojson(indent=10000000000) }}": "indents JSON",
    "{% set s = 'x' * 9999 %}{% for i in range(99999) %}{{ s }}{% endfor %}": (
        "a text or list of over"
    ),
    "{% set t %}{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}": (
        "a text or list of over"
    ),
    "{% set n = namespace(i=3) %}{% for i in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}": (
        "a number of over"
    ),
    "{{ 9 ** 10000000000 }}": "a number of over",
}


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_takes_too_much_is_stopped(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_STEPS", 400_000)
    with pytest.raises(DataError, match=f"the chat template .*{ENDLESS[template]}"):
        ChatTemplate(template).render(TALK)
    # The next conversation has all its steps.
    assert ChatTemplate(TEMPLATES["chatml"]).render(TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{{ range(5) | join(', ') }} {{ ','.join(['a', 'b']) }} {{ messages | join('|', 'role') }}",
        "{% for m in messages if m.role != 'user' %}{{ loop.index }}/{{ loop.length }} "
        "{{ loop.revindex }} {{ loop.last }}{% else %}none{% endfor %}",
        "{% for m in messages[::-1] %}{{ m.content[:3] ~ loop.index0 ~ '%5.1f' % 2 }}{% endfor %}",
        "{{ '{:>5}|{}'.format(1, 'x') }} {{ 'ab'.replace('a', 'c') | indent(2, true) | upper }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
        "{{ messages | tojson(indent=2) }} {{ 2 ** 10 }} {{ 7 * 6 }} {{ 'ab' * 3 }}{{ [1] + [2] }}",
        "{% macro f(m) %}{{ m.role }}: {{ caller() }}{% endmacro %}"
        "{% for m in messages %}{% call f(m) %}{{ m.content | trim }}{% endcall %}{% endfor %}",
        "{{ 'a' < 'b' }} {{ 1 < 2 <= 2 }} {{ 'x' in messages[0].content }} {{ missing == 1 }}",
    ],
)
def test_limits_change_no_text(tokenizer: Tokenizer, tmp_path: Path, template: str) -> None:
    tokenizer.settings["chat_template"] = template
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(TALK, tokenize=False)
    assert ChatTemplate(template, tokenizer.special).render(TALK) == expected


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


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_templates_without_a_default_are_refused(
    tokenizer: Tokenizer, as_dict: bool
) -> None:
    named = {"tool_use": "t", "rag": "r"}
    entries = [{"name": name, "template": text} for name, text in named.items()]
    given = replace(tokenizer, settings={"chat_template": named if as_dict else entries})
    with pytest.raises(CheckpointError, match=r"several templates \(rag, tool_use\), and none"):
        ChatTemplate.of(given)


def test_named_templates_in_files_of_their_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain = replace(tokenizer, settings={"tokenizer_class": "GPT2Tokenizer"})
    plain.save(tmp_path)
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("t")
    with pytest.raises(CheckpointError, match=r"several templates \(tool_use\), and none"):
        ChatTemplate.of(load_tokenizer(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("d")
    template = ChatTemplate.of(load_tokenizer(tmp_path))
    assert template is not None
    assert template.render(TALK) == "d"


def test_a_template_that_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match="chat_template: expected a text, found an int"):
        ChatTemplate.of(replace(tokenizer, settings={"chat_template": 7}))


def test_a_token_that_the_tokenizer_lacks_is_not_blamed_on_the_messages() -> None:
    with pytest.raises(DataError, match=r"needs something that is not there .*'sep_token'"):
        ChatTemplate("{{ messages[0].content + sep_token }}").render(TALK)
