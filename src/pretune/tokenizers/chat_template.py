"""Chat templates: Jinja programs that turn messages into one text, as in transformers.

A template comes with a checkpoint, from anybody. It runs in Jinja's sandbox, where it can neither
reach Python's own functions nor change its arguments, and which limits its work and its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import UndefinedError

from pretune.errors import CheckpointError, DataError, describe_value
from pretune.text.decode import SURROGATE
from pretune.tokenizers.template_sandbox import (
    LimitedEnvironment,
    TemplateLimitError,
    allow_steps,
)
from pretune.tokenizers.tokenizer import Tokenizer

#: A message, with its `role` (`user`, `assistant`, ...) and its `content`.
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
    # Texts as they are, for a model that goes on with them.
    "plain": """\
{%- for message in messages -%}
{{ message.content }}
{%- if message.role == 'assistant' -%}{{ eos_token or sep_token }}{%- endif -%}
{%- endfor -%}
""",
}

#: The way out where a tokenizer's own template cannot be used.
_OWN = " or ".join(f"task.template={name}" for name in TEMPLATES)


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
            compiled = LimitedEnvironment().from_string(self.text)
        # Jinja compiles to Python, which adds errors of its own: `{% break %}` outside of a loop is
        # a SyntaxError, many nested loops an IndentationError or a MemoryError.
        except Exception as error:
            raise CheckpointError(
                "chat_template: not a Jinja template that can be read "
                f"({type(error).__name__}: {error})",
                f"Repair it in tokenizer_config.json or chat_template.jinja, or choose {_OWN}.",
            ) from None
        object.__setattr__(self, "_compiled", compiled)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a tokenizer, or None.

        Raises:
            CheckpointError: it is not valid Jinja, or there are several and none is the default.
        """
        text = tokenizer.settings.get("chat_template")
        if isinstance(text, list):  # several templates, each with a name
            entries = [entry for entry in text if isinstance(entry, dict)]
            text = {str(entry.get("name")): entry.get("template") for entry in entries}
        if isinstance(text, dict):
            names, text = ", ".join(sorted(text)), text.get("default")
            if text is None:
                raise CheckpointError(
                    f"chat_template: there are several templates ({names}), and none has the name "
                    "default",
                    f"Rename one to default in tokenizer_config.json, or choose {_OWN}.",
                )
        if text is None:
            return None
        if not isinstance(text, str):
            raise CheckpointError(
                f"chat_template: expected a text, found {describe_value(text)}",
                f"Repair it in tokenizer_config.json, or choose {_OWN}.",
            )
        return cls(text, dict(tokenizer.special))

    def render(self, messages: Sequence[Message], *, asked: bool = False) -> str:
        """Render messages, oldest first, as one text; if `asked`, it ends where a reply begins.

        Raises:
            DataError: the template refuses these messages, fails on them, takes too many steps, or
                writes too much or half a character.
        """
        allow_steps()
        try:
            text: str = self._compiled.render(  # type: ignore[attr-defined]
                messages=[dict(message) for message in messages],
                add_generation_prompt=asked,
                tools=None,
                documents=None,
                **self.special,
            )
        except TemplateLimitError as error:
            raise DataError(f"the chat template {error}", f"Repair it, or take {_OWN}.") from None
        except UndefinedError as error:
            raise DataError(
                f"the chat template needs something that is not there ({error})",
                "A special token must be in the tokenizer, and tokenizer_config.json must name it; "
                f"or take {_OWN}.",
            ) from None
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
