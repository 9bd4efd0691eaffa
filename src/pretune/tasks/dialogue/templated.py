"""Conversations as a chat template lays them out: tokens of each part, histories that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pretune.decoding.text_stream import plain_text
from pretune.errors import DataError
from pretune.tasks.dialogue.replies import Ends, Span
from pretune.tasks.dialogue.turns import MOST_CHARS, Fitted
from pretune.tokenizers.chat_template import ChatTemplate, Message
from pretune.tokenizers.tokenizer import Tokenizer

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

    def spans(self, messages: Sequence[Message], *, asked: bool = False) -> list[Span]:
        """A conversation up to its last reply; the replies are learned.

        Args:
            messages: oldest first.
            asked: up to where a reply to the last of them begins.

        Raises:
            DataError: the template refuses it.
        """
        parts = self.template.parts(messages, asked=asked)
        encoded = self.tokenizer.encode_bare([text for text, _, _ in parts], offsets=False)
        return [
            Span(encoding.ids, turn, learned)
            for encoding, (_, turn, learned) in zip(encoded, parts, strict=True)
        ]

    def asked(self, messages: Sequence[Message]) -> list[int]:
        """What a reply to a conversation goes on from; its last message is the user's.

        Raises:
            DataError: the template refuses it, or writes nothing.
        """
        ids = [token for span in self.spans(messages, asked=True) for token in span.ids]
        if not ids:
            raise DataError(
                "the chat template writes nothing to go on from",
                "It has to write something before a reply: take another one (task.template).",
            )
        return ids

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
        """As `TurnLayout.history`: the user's turns and the model's, in turn."""
        roles = ("user", "assistant")
        talk = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        return self.fitted([*self._first, *talk], room)

    def fitted(self, messages: Sequence[Message], room: int) -> Fitted:
        """What a reply to a conversation goes on from: what the system says and as many of the last
        messages as there is room for.

        Of a last message that is too long by itself, its end is read; what the template writes
        around it stays.

        Args:
            messages: oldest first; the last one is to be replied to.
            room: the most tokens.

        Raises:
            DataError: the template refuses them, or writes nothing.
        """
        begun = len(messages) > 1 and messages[0]["role"] == "system"
        first, talk = messages[:begun], messages[begun:]
        short = [{**one, "content": one["content"][-MOST_CHARS:]} for one in talk]
        kept, ids = self._whole(first, short, room)
        uncounted = len(talk[-1]["content"]) > MOST_CHARS
        if kept:
            return Fitted(ids, len(talk) - kept, -1 if uncounted else 0)
        ids, cut = self._end_of(first, short[-1], room)
        return Fitted(ids, len(talk) - 1, -1 if uncounted else cut)

    def _whole(
        self, first: Sequence[Message], talk: Sequence[Message], room: int
    ) -> tuple[int, list[int]]:
        """How many of the last messages there is room for, a message of the user before each reply;
        and the tokens with so many."""
        most = (len(talk) + 1) // 2
        low, high, ids = 0, most + 1, list[int]()  # messages of the user that fit; that do not
        while high - low > 1:
            # Doubled at first: each is rendered as often as there are replies.
            middle = (low + high) // 2 if high <= most else min(max(1, 2 * low), most)
            found = self.asked([*first, *talk[-(2 * middle - 1) :]])
            if len(found) <= room:
                low, ids = middle, found
            else:
                high = middle
        return max(0, 2 * low - 1), ids

    def _end_of(self, first: Sequence[Message], last: Message, room: int) -> tuple[list[int], int]:
        """The tokens with as much of the end of a message as there is room for; how many fewer."""

        def asked(count: int) -> list[int]:
            return self.asked([*first, {**last, "content": last["content"][-count:]}])

        low, high = 0, len(last["content"])  # characters that fit, and that do not
        count = len(asked(high))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(asked(middle)) <= room else (low, middle)
        ids = asked(max(1, low))[-room:]
        return ids, count - len(ids)
