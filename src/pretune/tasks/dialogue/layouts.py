"""How a conversation becomes tokens: what a model reads, and what it learns to write.

A conversation is a list of messages; the assistant's are replies, which are learned. Two layouts
turn it into tokens: `TurnLayout`, the plain one, puts turn after turn, each with its end;
`TemplateLayout` follows a chat template.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, cycle
from typing import ClassVar, Self

from typing_extensions import override

from pretune.decoding.text_stream import plain_text
from pretune.errors import CheckpointError, DataError
from pretune.tokenizers.chat_template import TEMPLATES, ChatTemplate, Message
from pretune.tokenizers.tokenizer import Tokenizer

#: Where only the end of a text can be read, no more than this much of it is tokenized.
MAX_TAIL_CHARS = 100_000
#: A message's content where only what the template writes around it matters. No template filter
#: (trim, upper, ...) changes it.
_PLACEHOLDER = "31415926535"

#: A piece of text of a conversation, the number of its message, and whether it is learned.
TextPart = tuple[str, int, bool]


@dataclass(frozen=True)
class MessageTokens:
    """Consecutive tokens of one message."""

    ids: Sequence[int]
    turn: int = 0  # the number of the message in its conversation, from 0
    learned: bool = False  # whether the model is trained to predict them


#: The part of a conversation that a model reads as one sequence, and whether tokens of messages
#: that are new in it were cut away.
Excerpt = tuple[Sequence[MessageTokens], bool]


@dataclass(frozen=True)
class Fitted:
    """A history shortened to what a model can read."""

    ids: list[int]
    dropped: int = 0  # how many messages were left out at the beginning
    cut: int = 0  # tokens cut from the beginning of the last message; -1: too many to count


@dataclass(frozen=True)
class Ends:
    """What ends a reply in addition to the tokenizer's own end tokens."""

    tokens: frozenset[int] = frozenset()  # each of them ends a reply
    texts: tuple[str, ...] = ()  # end a reply where no single token stands for its end


@dataclass(frozen=True)
class ConversationLayout(ABC):
    """Turns conversations into tokens."""

    tokenizer: Tokenizer
    literal: ClassVar[bool]  # whether names of special tokens in a message are read as text

    @abstractmethod
    def parts(self, messages: Sequence[Message]) -> list[TextPart]:
        """Split a conversation up to its last reply into pieces that are tokenized separately.

        Raises:
            DataError: the layout cannot show these messages.
        """

    def encode(self, conversations: Sequence[Sequence[TextPart]]) -> list[list[MessageTokens]]:
        """Tokenize the parts of many conversations at once, each part to one span."""
        texts = [text for parts in conversations for text, _, _ in parts]
        encodings = iter(self.tokenizer.encode_bare(texts, offsets=False, literal=self.literal))
        return [
            [MessageTokens(next(encodings).ids, turn, learned) for _, turn, learned in parts]
            for parts in conversations
        ]

    @abstractmethod
    def excerpts(self, spans: Sequence[MessageTokens], size: int) -> Iterator[Excerpt]:
        """Divide a conversation into sequences that a model can be trained on.

        The model reads at most `size` tokens of an excerpt, which has one more: it is only
        predicted.
        """

    @abstractmethod
    def fitted(self, messages: Sequence[Message], room: int) -> Fitted:
        """Shorten a conversation to `room` tokens, which the model reads before it replies.

        Raises:
            DataError: the layout cannot show these messages.
        """

    def history(self, texts: Sequence[str], room: int) -> Fitted:
        """`fitted` for the texts of the user and the model in turn, the user's first."""
        roles = cycle(("user", "assistant"))
        talk = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return self.fitted(talk, room)

    @abstractmethod
    def ends(self) -> Ends:
        """What ends a reply."""


@dataclass(frozen=True)
class TurnLayout(ConversationLayout):
    """The plain layout: `[CLS] turn [SEP] turn [SEP]`, whoever speaks.

    With a vocabulary that has no `[CLS]` there is no beginning, and turns end with the end of text:
    `turn <|endoftext|> turn <|endoftext|>` (Zhang et al. 2020, "DialoGPT", section 2.2).

    Names of special tokens are read as text: nobody can end a turn and speak for the other.
    """

    literal: ClassVar[bool] = True
    begin: tuple[int, ...]  # the tokens before the first turn
    end: int  # the token that ends each turn

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The layout with the special tokens of a tokenizer.

        Raises:
            CheckpointError: it has no token that could end a turn.
        """
        begin, end = tokenizer.special_id("cls_token"), tokenizer.special_id("sep_token")
        end = tokenizer.end_id if end is None else end
        if end is None:
            raise CheckpointError(
                "the tokenizer has no token for the end of a turn",
                "Take one with a sep_token or an eos_token, such as a BERT's (model.tokenizer).",
            )
        return cls(tokenizer, () if begin is None else (begin,), end)

    @override
    def parts(self, messages: Sequence[Message]) -> list[TextPart]:
        return [(m["content"], i, m["role"] == "assistant") for i, m in enumerate(messages)]

    @override
    def encode(self, conversations: Sequence[Sequence[TextPart]]) -> list[list[MessageTokens]]:
        """One span for each turn, its end included."""
        return [
            [replace(span, ids=[*span.ids, self.end]) for span in spans]
            for spans in super().encode(conversations)
        ]

    @override
    def excerpts(self, spans: Sequence[MessageTokens], size: int) -> Iterator[Excerpt]:
        """Windows of whole turns (see `turn_windows`); every turn is learned in one of them."""
        room = size + 1 - len(self.begin)
        limit = turn_limit([len(span.ids) for span in spans], room)
        lengths = [min(len(span.ids), limit) for span in spans]
        for first, fresh, stop in turn_windows(lengths, room):
            read = [MessageTokens(self.begin)]
            for span in spans[first:stop]:
                learned = span.learned and span.turn >= fresh
                if len(span.ids) <= limit:
                    read.append(replace(span, learned=learned))
                else:
                    # A turn that is cut ends like any other, so that the next one follows an end;
                    # that end is not learned, as nobody stopped speaking there.
                    read.append(MessageTokens(span.ids[: limit - 1], span.turn, learned))
                    read.append(MessageTokens((self.end,), span.turn))
            yield read, any(len(span.ids) > limit for span in spans[fresh:stop])

    def turns(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each turn, its end included."""
        (spans,) = self.encode([[(text, i, False) for i, text in enumerate(texts)]])
        return [list(span.ids) for span in spans]

    def backwards(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The tokens of each turn, the newest first; each is tokenized when it is asked for."""
        for text in reversed(texts):
            yield from self.turns([text])

    @override
    def fitted(self, messages: Sequence[Message], room: int) -> Fitted:
        """As many of the last turns as fit; of a last turn that is too long by itself, its end."""
        texts = [message["content"] for message in messages]
        newest_first = self.backwards([text[-MAX_TAIL_CHARS:] for text in texts])
        limit = max(1, room - len(self.begin))
        # The last turn is always read, at least its end.
        last = next(newest_first)
        kept = [last[-limit:]]
        left = limit - len(kept[0])
        cut = -1 if len(texts[-1]) > MAX_TAIL_CHARS else len(last) - len(kept[0])
        # Earlier turns as long as they fit whole; with no room left none is tokenized.
        while left and (turn := next(newest_first, None)) is not None and len(turn) <= left:
            kept.append(turn)
            left -= len(turn)
        ids = [token for turn in reversed(kept) for token in turn]
        return Fitted([*self.begin, *ids], len(texts) - len(kept), cut)

    @override
    def ends(self) -> Ends:
        return Ends()  # the tokenizer's own end tokens suffice


def turn_limit(lengths: Sequence[int], room: int) -> int:
    """The maximum number of tokens of a turn: half a window if the dialogue needs several."""
    return room if sum(lengths) <= room else max(1, room // 2)


def turn_windows(lengths: Sequence[int], room: int) -> Iterator[tuple[int, int, int]]:
    """Divide a dialogue into windows of whole turns, at most `room` tokens each.

    Each turn is fresh in one window. Every window but the first begins with turns before its fresh
    ones as context: at least one, and at most half a window. No turn is above `turn_limit`.

    Yields:
        numbers of turns: the first of a window, the first fresh one, and the one after the last.
    """
    before = [0, *accumulate(lengths)]
    fresh = 0
    while fresh < len(lengths):
        # Context: the turn before, and more while they fill no more than half the window.
        first = max(0, fresh - 1)
        while first > 0 and before[fresh] - before[first - 1] <= room // 2:
            first -= 1
        # The first fresh turn must fit, too: give up context for it.
        while before[fresh + 1] - before[first] > room and first < fresh - 1:
            first += 1
        # Then as many fresh turns as fit.
        stop = fresh + 1
        while stop < len(lengths) and before[stop + 1] - before[first] <= room:
            stop += 1
        yield first, fresh, stop
        fresh = stop


def give_template(tokenizer: Tokenizer, chosen: str) -> None:
    """Give a tokenizer the chat template that a recipe names, which is saved with it.

    Args:
        tokenizer: changed in place.
        chosen: a name among `TEMPLATES`; `auto`: its own, else Alpaca's.

    Raises:
        CheckpointError: its own template cannot be used, or it has no token to end a reply with
            where the template needs one.
    """
    if chosen == "auto" and ChatTemplate.of(tokenizer) is not None:
        return
    name = "alpaca" if chosen == "auto" else chosen
    if name != "chatml" and tokenizer.end_id is None:
        raise CheckpointError(
            f"the template {name} ends a reply with the tokenizer's eos_token or sep_token, and it "
            "has neither",
            "Take task.template=chatml, or a tokenizer that has one, such as wordpiece and bpe "
            "make.",
        )
    tokenizer.settings["chat_template"] = TEMPLATES[name]


@dataclass(frozen=True)
class TemplateLayout(ConversationLayout):
    """A chat template with the tokenizer that reads what it writes.

    Each part of a conversation is tokenized by itself, in training as in use. So a model is asked
    with the tokens it was trained on, whatever characters meet at the edges of parts.
    """

    literal: ClassVar[bool] = False
    template: ChatTemplate
    system: str | None = None  # the system message of conversations that have none of their own

    @classmethod
    def of(cls, tokenizer: Tokenizer, system: str | None = None) -> Self | None:
        """The layout of a tokenizer's own template; None if it has none.

        Raises:
            CheckpointError: the template is not valid Jinja.
        """
        template = ChatTemplate.of(tokenizer)
        return None if template is None else cls(tokenizer, template, system)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        if not self.system or (messages and messages[0]["role"] == "system"):
            return [*messages]
        return [{"role": "system", "content": self.system}, *messages]

    @override
    def parts(self, messages: Sequence[Message]) -> list[TextPart]:
        """What the template writes before and in each reply (see `ChatTemplate.parts`)."""
        return self.template.parts(self._with_system(messages))

    @override
    def excerpts(self, spans: Sequence[MessageTokens], size: int) -> Iterator[Excerpt]:
        """The beginning of the conversation, as one sequence."""
        left, read = size + 1, []
        for span in spans:
            read.append(replace(span, ids=span.ids[:left]))
            left -= len(read[-1].ids)
        yield read, sum(len(span.ids) for span in spans) > size + 1

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens after which the model replies to the last message, the user's.

        Raises:
            DataError: the template refuses the messages, or writes nothing.
        """
        parts = self.template.parts(self._with_system(messages), asked=True)
        ids = [token for span in self.encode([parts])[0] for token in span.ids]
        if not ids:
            raise DataError(
                "the chat template writes nothing before a reply",
                "The model needs something to continue: take another template (task.template).",
            )
        return ids

    @override
    def ends(self) -> Ends:
        """What the template writes after a reply: its first added token, or else the whole text.

        Raises:
            DataError: the template refuses a message of the user and a reply.
        """
        exchange = [{"role": role, "content": _PLACEHOLDER} for role in ("user", "assistant")]
        # A template that ignores `add_generation_prompt` opens the reply in this part, too.
        *_, (reply, _, _) = self.parts(exchange)
        _, _, after = reply.partition(_PLACEHOLDER)
        (encoded,) = self.tokenizer.encode_bare([after], offsets=False)
        added = self.tokenizer.engine.get_added_tokens_decoder()
        for token in encoded.ids:
            if token in added:
                return Ends(tokens=frozenset([token]))
        # As the model's tokens spell it: a WordPiece tokenizer puts spaces between marks.
        text = plain_text(self.tokenizer, encoded.ids).strip()
        return Ends(texts=(text,) if text else ())

    def require_end(self) -> None:
        """Check that replies have an end, so that a model can learn to stop.

        Raises:
            CheckpointError: the template writes nothing but white space after a reply.
            DataError: the template refuses a message of the user and a reply.
        """
        ends = self.ends()
        if not ends.tokens and not ends.texts:
            raise CheckpointError(
                "the chat template writes nothing after a reply, so the model would not learn to "
                "stop",
                "Let it write an end, e.g. {{ message.content + eos_token }}, or take "
                "task.template=alpaca or task.template=chatml.",
            )

    @override
    def fitted(self, messages: Sequence[Message], room: int) -> Fitted:
        """The system message and as many of the last messages as fit.

        Of a last message that is too long by itself, its end; what the template writes around it
        stays whole.
        """
        # The system message always stays; the rest is shortened.
        messages = self._with_system(messages)
        begun = len(messages) > 1 and messages[0]["role"] == "system"
        system, talk = messages[:begun], messages[begun:]
        tails = [{**m, "content": m["content"][-MAX_TAIL_CHARS:]} for m in talk]
        # As many whole messages as fit, or else the end of the last one.
        kept, ids = self._whole_messages(system, tails, room)
        uncounted = len(talk[-1]["content"]) > MAX_TAIL_CHARS
        if kept:
            return Fitted(ids, len(talk) - kept, -1 if uncounted else 0)
        ids, cut = self._end_of_message(system, tails[-1], room)
        return Fitted(ids, len(talk) - 1, -1 if uncounted else cut)

    def _whole_messages(
        self, system: Sequence[Message], talk: Sequence[Message], room: int
    ) -> tuple[int, list[int]]:
        """How many of the last messages fit, and the prompt with them.

        They begin with a message of the user, so their number is odd, or 0 if not even one fits.
        """
        total = (len(talk) + 1) // 2
        low, high, ids = 0, total + 1, list[int]()  # messages of the user that fit; that do not
        while high - low > 1:
            # Double until it no longer fits, then bisect: a conversation is rendered once for each
            # of its replies, so long ones are tried only if they may fit.
            middle = (low + high) // 2 if high <= total else min(max(1, 2 * low), total)
            prompt = self.prompt([*system, *talk[-(2 * middle - 1) :]])
            if len(prompt) <= room:
                low, ids = middle, prompt
            else:
                high = middle
        return max(0, 2 * low - 1), ids

    def _end_of_message(
        self, system: Sequence[Message], last: Message, room: int
    ) -> tuple[list[int], int]:
        """The prompt with as much of a message's end as fits, and how many tokens were cut."""

        def prompt(chars: int) -> list[int]:
            return self.prompt([*system, {**last, "content": last["content"][-chars:]}])

        low, high = 0, len(last["content"])  # characters that fit, and that do not
        whole = len(prompt(high))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(prompt(middle)) <= room else (low, middle)
        ids = prompt(max(1, low))[-room:]
        return ids, whole - len(ids)
