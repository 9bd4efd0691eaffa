"""Templates: the text of an example for a language model, with fields for its columns."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pretune.errors import PretuneError, did_you_mean

#: The field of the answer, whatever the column of the labels is called.
ANSWER = "answer"
_HINT = (
    "A template is a text with {column} for what the data has there and, once, {answer}; "
    "a brace itself is written twice: {{ or }}."
)


@dataclass(frozen=True)
class Template:
    """A text with the fields `{column}` and, once, `{answer}`.

    Texts that are filled in are not read as templates, and fields can only name columns: templates
    of other people do no harm.
    """

    text: str
    before: tuple[tuple[str, str | None], ...]  # text, column (None: the answer)
    after: tuple[tuple[str, str | None], ...]  # the same form (None: the end)

    @classmethod
    def parse(cls, text: str, columns: Sequence[str], label: str) -> Self:
        """Read a template; it must not show the column of the labels.

        Raises:
            PretuneError: a brace by itself, an unknown field, or no single `{answer}`.
        """
        pieces: list[tuple[str, str | None]] = []
        known = [ANSWER, *(column for column in columns if column != label)]
        try:
            for literal, name, spec, conversion in string.Formatter().parse(text):
                if spec or conversion:
                    raise ValueError(f"a field is a name alone, not '{name}' with more")
                pieces.append((literal, name))
        except ValueError as error:
            raise PretuneError(f"template: {error}", _HINT) from None
        fields = [name for _, name in pieces if name is not None]
        for name in fields:
            if name == label and name != ANSWER:
                raise PretuneError(
                    f"template: {{{name}}} would give the label away",
                    "Write {answer} in its place.",
                )
            if name not in known:
                raise PretuneError(
                    f"template: the data has no column '{name}'", did_you_mean(name, known)
                )
        if fields.count(ANSWER) != 1:
            raise PretuneError(f"template: {{answer}} occurs {fields.count(ANSWER)} times", _HINT)
        at = next(i for i, (_, name) in enumerate(pieces) if name == ANSWER)
        head = (*pieces[:at], (pieces[at][0], None))
        return cls(text, head, tuple(pieces[at + 1 :]))

    @classmethod
    def of_columns(cls, columns: Sequence[str], label: str) -> Self:
        """Make the default template: each column on a line, then the answer."""
        shown = [column for column in columns if column != label]
        if not shown:
            raise PretuneError("the data has no column but that of the labels", "Give it a text.")
        before: list[tuple[str, str | None]] = []
        for name in shown:
            before.append((("\n" if before else "") + f"{name.capitalize()}: ", name))
        before.append((f"\n{label.capitalize()}: ", None))
        text = "".join(_escaped(literal) + f"{{{name or ANSWER}}}" for literal, name in before)
        return cls(text, tuple(before), ())

    @property
    def columns(self) -> list[str]:
        """The columns that it shows."""
        return list(dict.fromkeys(name for _, name in (*self.before, *self.after) if name))

    @property
    def premise(self) -> str:
        """The text between the last column and the answer."""
        return self.before[-1][0]

    def question(self, values: Mapping[str, str]) -> str:
        """Return the text up to the answer."""
        return _filled(self.before, values)

    def example(self, values: Mapping[str, str], answer: str) -> str:
        """Return the whole text."""
        return self.question(values) + answer + _filled(self.after, values)


def _filled(pieces: Sequence[tuple[str, str | None]], values: Mapping[str, str]) -> str:
    return "".join(text + (values[name] if name else "") for text, name in pieces)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
