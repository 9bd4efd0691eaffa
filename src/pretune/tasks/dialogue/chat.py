"""Chit-chat: dialogues in turns, in which each turn is a reply to those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from pretune.data.batch import Feature, Features, PackedBatch, Skipped
from pretune.data.records import Records
from pretune.errors import DataError, describe_value
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.tasks.base import Loss, ReadsWindows, Task, UsesTokenizer, WritesAnswers
from pretune.tasks.dialogue.layouts import TurnLayout, turn_limit
from pretune.tasks.dialogue.metrics import ReplyMetrics, Sample, variety
from pretune.tasks.dialogue.replies import (
    ASKED,
    TURN,
    Replied,
    ReplyOptions,
    ReplyPrediction,
    Span,
    last_reply,
    score_replies,
    targets_of,
    write_replies,
)
from pretune.tasks.dialogue.turns import windows
from pretune.tasks.grading import EachLoss
from pretune.tokenizers.tokenizer import Tokenizer

TURNS = "turns"


class ChatOptions(ReplyOptions):
    """Options of `chat`."""

    name: Literal["chat"] = Field("chat", description="A dialogue in turns: what is replied.")
    max_length: int = Field(
        128,
        ge=4,  # the beginning, and of each of two turns that are cut a token and its end
        description="The most tokens of a window; longer dialogues are read in several.",
    )
    learn: Literal["all", "replies"] = Field(
        "all",
        description="all: every turn is learned; replies: not the first one of a dialogue, which "
        "replies to nothing (DialoGPT).",
    )
    reverse: bool = Field(
        False,
        description="Dialogues backwards: what may a turn have been said after? Such a model "
        "scores the replies of another one: pretune chat RUN --mmi THIS.",
    )


class Chat(Task[ChatOptions, ReplyPrediction], ReadsWindows, UsesTokenizer, WritesAnswers):
    """Each turn from those before it; evaluated by perplexity and by replies that are written.

    `[CLS] turn [SEP] turn [SEP]`: a sequence a dialogue. One longer than `max_length` is read in
    windows of whole turns, which begin with turns of the window before; every turn is learned once.
    """

    name: ClassVar[str] = "chat"
    options_type: ClassVar[type[ChatOptions]] = ChatOptions
    head: ClassVar[str] = "causal_lm"
    best_by: ClassVar[str] = "loss"

    def __init__(self, options: ChatOptions) -> None:
        super().__init__(options)
        self._tokenizer: Tokenizer | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """`turns`."""
        return {TURNS: "what was said: a list of texts, oldest first"}

    def usage(self, run: str) -> str:
        """In a conversation; of a model for replies of another one, with that."""
        return f"pretune chat RUN --mmi {run}" if self.options.reverse else f"pretune chat {run}"

    @property
    def truncation_note(self) -> str:
        """As `Task.truncation_note`."""
        return f"had a turn too long for windows of {self.options.max_length} tokens, which was cut"

    def bind(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer; see that it can end turns."""
        TurnLayout.of(tokenizer)
        self._tokenizer = tokenizer

    def config_entries(self) -> dict[str, Any]:
        """With what transformers' `generate` begins and ends."""
        if self._tokenizer is None:
            return {}
        layout = TurnLayout.of(self._tokenizer)
        begin = layout.begin[0] if layout.begin else layout.end
        return {"bos_token_id": begin, "eos_token_id": layout.end}

    def texts(self, records: Records) -> Iterator[str]:
        """All turns."""
        for row in range(len(records)):
            yield from turns_of(records, row)

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """Windows of turns; without targets what a reply is to be written to."""
        if with_targets:
            yield from self._learned(records, rows, tokenizer, asked=False)
            return
        layout = TurnLayout.of(tokenizer)
        for row in rows:
            turns = self._order(turns_of(records, row))
            fitted = layout.history(turns, self.options.room)
            cut = bool(fitted.dropped or fitted.cut)
            yield Feature(tokens=fitted.ids, record=row, truncated=cut)

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature | Skipped]:
        """The same windows, the replies numbered; some last ones are to be written, too."""
        return self._learned(records, rows, tokenizer, asked=True)

    def _order(self, turns: list[str]) -> list[str]:
        return turns[::-1] if self.options.reverse else turns

    def _learned(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, asked: bool
    ) -> Iterator[Feature | Skipped]:
        layout = TurnLayout.of(tokenizer)
        texts = [self._order(turns_of(records, row)) for row in rows]
        encoded = iter(layout.turns([text for turns in texts for text in turns]))
        for row, own in zip(rows, texts, strict=True):
            turns = [next(encoded) for _ in own]
            if len(turns) < 2:
                yield Skipped(row, "one turn alone: nothing is said to it")
                continue
            sampled = asked and self.options.is_sample(row, len(records))
            for spans, cut in self._windows(turns, layout):
                tokens, targets = targets_of(spans)
                if asked:
                    last = len(turns) - 1
                    before = sum(len(span.ids) for span in spans if span.turn < last)
                    wanted = sampled and spans[-1].turn == last
                    targets[ASKED] = before if wanted else 0
                else:
                    del targets[TURN]
                yield Feature(tokens=tokens, targets=targets, record=row, truncated=cut)

    def _windows(
        self, turns: list[list[int]], layout: TurnLayout
    ) -> Iterator[tuple[list[Span], bool]]:
        """What is read together, and whether a turn was cut for it.

        A turn that is cut ends like any other, so that the next one begins behind an end; that end
        is not learned, as nobody ended there.
        """
        room = self.options.max_length + 1 - len(layout.begin)
        most = turn_limit([len(turn) for turn in turns], room)
        from_first = self.options.learn == "all"
        for window in windows([min(len(turn), most) for turn in turns], room):
            spans = [Span(layout.begin)]
            for i in range(window.first, window.stop):
                learned, cut = i >= window.fresh and (i > 0 or from_first), len(turns[i]) > most
                spans.append(Span(turns[i][: most - cut], i, learned))
                spans += [Span((layout.end,), i)] * cut
            yield spans, any(len(turns[i]) > most for i in range(window.fresh, window.stop))

    def build(self, backbone: Backbone) -> nn.Module:
        """The family's own output layer."""
        return build_head(backbone, "causal_lm")

    def forward(self, model: nn.Module, batch: PackedBatch) -> Replied:
        """Score the turns that are learned."""
        return score_replies(model, batch, self.options)

    def write(self, model: nn.Module, outputs: Replied, batch: PackedBatch) -> Replied:
        """Write the replies that the batch asks for."""
        return write_replies(model, outputs, batch, self.options, self._tokenizer)

    def loss(self, outputs: Replied, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in tokens that are learned."""
        return outputs.loss(self.options)

    def each_loss(self, outputs: Replied, batch: PackedBatch) -> EachLoss:
        """Cross-entropy of each sequence."""
        return outputs.each_loss()

    def predict(self, outputs: Replied, batch: PackedBatch) -> list[ReplyPrediction | None]:
        """The replies."""
        return outputs.predictions(batch)

    def combine(
        self, parts: Sequence[ReplyPrediction | None], record: Mapping[str, Any]
    ) -> ReplyPrediction:
        """The reply; empty where none was asked for, as in most of an evaluation."""
        return last_reply(parts)

    def metrics(self, features: Features | None = None) -> ReplyMetrics:
        """Perplexity; distinct-1 and -2."""
        return ReplyMetrics(features, self._sample, variety)

    def _sample(self, record: Mapping[str, Any], written: str) -> Sample:
        turns: Sequence[str] = self._order(list(record[TURNS]))
        return Sample(turns[:-1], written, turns[-1])


def turns_of(records: Records, row: int) -> list[str]:
    """The turns of a record; a text is one turn.

    Raises:
        DataError: no list of texts, or one with an empty turn; names file, line and item.
    """
    value = records.rows[row].get(TURNS)
    if isinstance(value, str):
        value = [value]
    hint = 'A dialogue is {"turns": ["...", "...", ...]}.'
    turns = records.items(value, row, TURNS, "texts", hint)
    for item, text in enumerate(turns):
        where = records.where(row, TURNS, item)
        if not isinstance(text, str):
            raise DataError(
                f"{where}: expected a text, found {describe_value(text)}",
                "Messages with roles are read by the task instruct."
                if isinstance(text, dict)
                else "Each turn is one text.",
            )
        if not text.strip():
            raise DataError(f"{where}: an empty turn", "Write what was said, or remove the turn.")
        records.checked(text, row, TURNS, item)
    return turns
