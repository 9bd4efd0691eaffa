"""Conversations as a chat template lays them out: tokens of each part, histories that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pretune.decoding.stream import plain_text
from pretune.tasks.replies import Ends, Span
from pretune.tasks.turns import MOST_CHARS, Fitted
from pretune.text import Tokenizer
from pretune.text.chat_template import ChatTemplate, Message

#: What is said where only what the template writes around it counts: nothing that a filter changes.
_SAID = "31415926535"


@dataclass(frozen=True)
class TemplateLayout:
    """A chat template with the tokenizer that reads what it writes.

    Each part of a conversation is tokenized by itself, in training and afterwards alike: so what
    the model is asked with is what it was trained on, whatever stands at the edges.

    Attributes:
        template: the template.
        tokenizer: of the model.
        system: what the first message says, where there is to be one by the system.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    system: str | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, system: str | None = None) -> Self | None:
        """By a tokenizer's own template; None: it has none.

        Raises:
            CheckpointError: it is not valid Jinja.
        """
        template = ChatTemplate.of(tokenizer)
        return None if template is None else cls(template, tokenizer, system)

    @property
    def _first(self) -> list[Message]:
        """What the system says before all else."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def spans(self, messages: Sequence[Message]) -> list[Span]:
        """A conversation up to its last reply; the replies are learned.

        Raises:
            DataError: the template refuses it.
        """
        parts = self.template.parts(messages)
        encoded = self.tokenizer.encode_bare([text for text, _, _ in parts], offsets=False)
        return [
            Span(encoding.ids, turn, learned)
            for encoding, (_, turn, learned) in zip(encoded, parts, strict=True)
        ]

    def asked(self, messages: Sequence[Message]) -> list[int]:
        """What a reply to a conversation goes on from; its last message is the user's."""
        spans = self.spans(messages)
        before = "".join(text for text, _, _ in self.template.parts(messages))
        rest = self.template.render(messages, asked=True)[len(before) :]
        (encoded,) = self.tokenizer.encode_bare([rest], offsets=False)
        return [token for span in spans for token in span.ids] + encoded.ids

    def ends(self) -> Ends:
        """What ends a reply, by the template: the first added token after its content; where there
        is none, all that the template writes there.

        Raises:
            DataError: the template refuses a message of the user and a reply.
        """
        talk = [{"role": "user", "content": _SAID}, {"role": "assistant", "content": _SAID}]
        *_, (reply, _, _) = self.template.parts([*self._first, *talk])
        # What opens a reply is written here too by a template without `add_generation_prompt`.
        _, _, behind = reply.partition(_SAID)
        (encoded,) = self.tokenizer.encode_bare([behind], offsets=False)
        added = self.tokenizer.engine.get_added_tokens_decoder()
        for token in encoded.ids:
            if token in added:
                return Ends(tokens=frozenset([token]))
        # As the model's tokens make it: a WordPiece tokenizer puts spaces between marks.
        text = plain_text(self.tokenizer, encoded.ids).strip()
        return Ends(texts=(text,) if text else ())

    def history(self, texts: Sequence[str], room: int) -> Fitted:
        """As `TurnLayout.history`: the user's turns and the model's, in turn.

        Of a last message that is too long by itself, its end is read; what the template writes
        around it stays.
        """
        messages = [
            {"role": "assistant" if i % 2 else "user", "content": text[-MOST_CHARS:]}
            for i, text in enumerate(texts)
        ]
        first = self._first
        ids: list[int] = []
        for dropped in range(0, len(messages), 2):
            ids = self.asked([*first, *messages[dropped:]])
            if len(ids) <= room:
                return Fitted(ids, dropped, -1 if len(texts[-1]) > MOST_CHARS else 0)
        dropped, whole, last = len(messages) - 1, ids, messages[-1]["content"]
        low, high = 0, len(last)  # characters that fit, and that do not
        while high - low > 1:
            middle = (low + high) // 2
            found = self.asked([*first, {"role": "user", "content": last[-middle:]}])
            low, high = (middle, high) if len(found) <= room else (low, middle)
        ids = self.asked([*first, {"role": "user", "content": last[-max(1, low) :]}])
        return Fitted(ids[-room:], dropped, len(whole) - len(ids))
