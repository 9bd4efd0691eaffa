"""Prompts with their replies as tokens: what every task that learns from preferences reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pretune.tasks.dialogue.layouts import TemplateLayout
from pretune.tokenizers.chat_template import Message


@dataclass(frozen=True)
class ReplyTokens:
    """A prompt and some replies to it, cut to what a model reads.

    Attributes:
        prompt: the tokens before the reply, the same for every reply.
        replies: the tokens of each reply, with what the template writes after it.
        truncated: whether something was cut.
        lengths: tokens of each reply before it was cut.
    """

    prompt: list[int]
    replies: list[list[int]]
    truncated: bool
    lengths: list[int]


def reply_tokens(
    layout: TemplateLayout, messages: Sequence[Message], replies: Sequence[str], size: int
) -> ReplyTokens:
    """Lay out a prompt with each of some replies, in at most `size` tokens a sequence.

    The replies get at least half of the room, of which they use what they need; the prompt loses
    its oldest messages, as in a conversation, and a reply that is too long loses its end.

    Raises:
        DataError: the template refuses the messages.
    """
    # Each reply as the template ends it.
    written = []
    for reply in replies:
        parts = layout.parts([*messages, {"role": "assistant", "content": reply}])
        written.append([part for part in parts if part[2]][-1:])
    encoded = [list(spans[0].ids) for spans in layout.encode(written)]
    # The prompt is the same for all, so the longest reply decides how much of it stays.
    longest = max(map(len, encoded))
    room = size - min(longest, size - size // 2)
    fitted = layout.fitted(messages, room)
    left = size - len(fitted.ids)
    cut = bool(fitted.dropped or fitted.cut) or longest > left
    return ReplyTokens(fitted.ids, [ids[:left] for ids in encoded], cut, [*map(len, encoded)])


def useless_pair(replies: Sequence[str]) -> str | None:
    """Why nothing can be learned from the replies of a record; None where something can."""
    if not all(reply.strip() for reply in replies):
        return "an empty reply"
    if len(replies) == 2 and replies[0] == replies[1]:
        return "both replies are equal"
    return None
