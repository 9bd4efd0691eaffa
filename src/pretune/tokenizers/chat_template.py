"""Chat templates: Jinja programs that turn messages into one text, as in transformers.

A template comes with a checkpoint, from anybody. It runs in Jinja's sandbox, where it can neither
reach Python's own functions nor change its arguments. Its time and memory are not limited.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pretune.errors import CheckpointError, DataError
from pretune.text.decode import SURROGATE
from pretune.tokenizers.tokenizer import Tokenizer

#: A message: `{"role": "user", "content": "..."}`.
Message = Mapping[str, str]

#: Templates to train with where a tokenizer has none. A reply ends with the tokenizer's end of
#: text, which in a BERT's vocabulary is `[SEP]`.
TEMPLATES = {
    # Taori et al. 2023, "Stanford Alpaca"; without its preamble, and in several turns.
    "alpaca": """\
{%- set end = eos_token or sep_token -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\n\n' }}
{%- elif message.role == 'user' -%}{{ '### Instruction:\n' + message.content + '\n\n' }}
{%- else -%}{{ '### Response:\n' + message.content + end }}
{%- if not loop.last %}{{ '\n\n' }}{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\n' }}{%- endif -%}
""",
    # OpenAI's ChatML.
    "chatml": """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
""",
}


class _Generation(Extension):
    """`{% generation %}`, which marks replies for training masks, and changes no text."""

    tags = {"generation"}  # noqa: RUF012 - declared like this in the base class

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _environment() -> ImmutableSandboxedEnvironment:
    """The names and settings that transformers gives to templates, and no others."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    kept = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
    environment.globals.clear()
    environment.globals.update(
        kept, raise_exception=_refuse, strftime_now=lambda how: datetime.now().strftime(how)
    )
    environment.filters["tojson"] = _to_json
    return environment


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the special tokens that it may name.

    Raises:
        CheckpointError: the source is not valid Jinja.
    """

    text: str  # the source in Jinja
    # The special tokens by name, e.g. `{"eos_token": "<|endoftext|>"}`.
    special: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            compiled = _environment().from_string(self.text)
        # Jinja compiles to Python, which adds errors of its own: `{% break %}` outside of a loop is
        # a SyntaxError, many nested loops an IndentationError or a MemoryError.
        except Exception as error:
            raise CheckpointError(
                "chat_template: not a Jinja template that can be read "
                f"({type(error).__name__}: {error})",
                "Repair it in tokenizer_config.json or chat_template.jinja, or name another with "
                "task.template.",
            ) from None
        object.__setattr__(self, "_compiled", compiled)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a tokenizer, or None."""
        text = tokenizer.settings.get("chat_template")
        if isinstance(text, list):  # several templates, each with a name
            named = (entry for entry in text if isinstance(entry, dict))
            default = (e.get("template") for e in named if e.get("name") == "default")
            text = next(default, None)
        return cls(text, dict(tokenizer.special)) if isinstance(text, str) else None

    def render(self, messages: Sequence[Message], *, asked: bool = False) -> str:
        """Render messages, oldest first, as one text; if `asked`, it ends where a reply begins.

        Raises:
            DataError: the template refuses these messages, fails on them, or writes half a
                character.
        """
        try:
            text: str = self._compiled.render(  # type: ignore[attr-defined]
                messages=[dict(message) for message in messages],
                add_generation_prompt=asked,
                tools=None,
                documents=None,
                **self.special,
            )
        except Exception as error:  # a template can fail in any way
            raise DataError(
                f"the chat template refuses these messages ({type(error).__name__}: {error})",
                "Change them, or take another template (task.template).",
            ) from None
        if (half := SURROGATE.search(text)) is not None:
            raise DataError(
                f"the chat template writes half a character, \\u{ord(half[0]):04x}",
                "Repair it, or take another template (task.template).",
            )
        return text

    def parts(
        self, messages: Sequence[Message], *, asked: bool = False
    ) -> list[tuple[str, int, bool]]:
        """Cut the text of messages into what the model reads and what it writes.

        Messages after the last reply are left out; if `asked`, all are kept, and the text ends
        where a reply to the last message begins.

        Returns:
            the parts of the text, in order: the text, the number of the reply (0-based message) it
            leads to or is, and whether it is that reply, with its end.

        Raises:
            DataError: as for `render`; or the text before a reply changes once the reply is there.
        """
        pieces, done = [], ""
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        # Render up to each reply without and with it: the difference is what the model writes.
        for i in [*places, len(messages)] if asked else places:
            before = self.render(messages[:i], asked=True)
            replied = self.render(messages[: i + 1]) if i < len(messages) else before
            # Text may come between messages, but what was rendered before must not change.
            if not (before.startswith(done) and replied.startswith(before)):
                raise DataError(
                    f"the chat template changes the text before message {i + 1}, so its reply "
                    "cannot be told from the rest",
                    "Take another template, e.g. task.template=chatml.",
                )
            pieces += [(before[len(done) :], i, False), (replied[len(before) :], i, True)]
            done = replied
        return pieces[:-1] if asked else pieces
