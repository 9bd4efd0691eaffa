"""Chat templates: how messages become one text, written in Jinja as transformers does it.

A template comes with a checkpoint, from anybody. It runs in Jinja's sandbox: it can neither reach
Python's own functions nor change what it is given. Its time and memory are not limited.
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

#: Templates to train with where a tokenizer has none. A text ends with the tokenizer's end of text,
#: which in a BERT's vocabulary is `[SEP]`.
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
    """`{% generation %}`: marks replies for whoever wants them; here the text as it is."""

    tags = {"generation"}  # noqa: RUF012 - as the class above has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    """Jinja's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _environment() -> ImmutableSandboxedEnvironment:
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    kept = {name: found.globals[name] for name in ("range", "dict", "namespace")}
    found.globals.clear()
    found.globals.update(
        kept,
        raise_exception=_refuse,
        strftime_now=lambda how: datetime.now().strftime(how),
    )
    found.filters["tojson"] = _to_json
    return found


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and the special tokens that it may name.

    Attributes:
        text: in Jinja.
        special: by name, e.g. `{"eos_token": "<|endoftext|>"}`.

    Raises:
        CheckpointError: it is not valid Jinja.
    """

    text: str
    special: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            compiled = _environment().from_string(self.text)
        # Jinja makes Python of it, which can go wrong in ways of its own: `{% break %}` outside of
        # a loop is a SyntaxError, many loops in one another an IndentationError or a MemoryError.
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
        """A tokenizer's own; None: it has none.

        Raises:
            CheckpointError: it is not valid Jinja.
        """
        text = tokenizer.settings.get("chat_template")
        if isinstance(text, list):  # several by name
            several = (one for one in text if isinstance(one, dict))
            usual = (one.get("template") for one in several if one.get("name") == "default")
            text = next(usual, None)
        return cls(text, dict(tokenizer.special)) if isinstance(text, str) else None

    def render(self, messages: Sequence[Message], *, asked: bool = False) -> str:
        """Messages as one text.

        Args:
            messages: oldest first.
            asked: whether a reply is to follow (`add_generation_prompt`).

        Raises:
            DataError: the template refuses these messages, cannot be run on them, or writes half a
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
        except Exception as error:  # whatever the template does wrong
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
        """Messages as pieces of the one text: each with the number of its message, and whether it
        is a reply: what the model writes, its end among it.

        Args:
            messages: oldest first; what comes after the last reply is left out.
            asked: all of them, up to where a reply to the last one begins: the last piece.

        Raises:
            DataError: as `render`; or what was said before a reply changes with it.
        """
        found, done = [], ""
        places = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for i in [*places, len(messages)] if asked else places:
            before = self.render(messages[:i], asked=True)
            replied = self.render(messages[: i + 1]) if i < len(messages) else before
            # Another message may follow with something in between.
            if not (before.startswith(done) and replied.startswith(before)):
                raise DataError(
                    f"the chat template changes what was said before message {i + 1}, so it cannot "
                    "be told what of it is the reply",
                    "Take another template, e.g. task.template=chatml.",
                )
            found += [(before[len(done) :], i, False), (replied[len(before) :], i, True)]
            done = replied
        return found[:-1] if asked else found
