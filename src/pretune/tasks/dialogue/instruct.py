"""Instruction tuning: conversations laid out by a chat template, of which replies are learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from pretune.data.batch import Feature, Features, PackedBatch, Skipped
from pretune.data.readers.conversations import MESSAGES, messages_of, with_messages
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.models.backbone import Backbone
from pretune.models.heads.pooled import causal_lm
from pretune.tasks.base import AdaptsRecords, Loss, Task, UsesTokenizer, WritesAnswers
from pretune.tasks.dialogue.metrics import ReplyMetrics, Sample, matches
from pretune.tasks.dialogue.replies import (
    ASKED,
    TURN,
    Replied,
    ReplyOptions,
    ReplyPrediction,
    last_reply,
    score_replies,
    targets_of,
    write_replies,
)
from pretune.tasks.dialogue.templated import TemplateLayout
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import IGNORED, NEXT
from pretune.tokenizers.chat_template import TEMPLATES, ChatTemplate
from pretune.tokenizers.tokenizer import Tokenizer


class InstructOptions(ReplyOptions):
    """Options of `instruct`."""

    name: Literal["instruct"] = Field("instruct", description="An instruction, and what answers.")
    max_length: int = Field(
        512, ge=3, description="The most tokens of a conversation; of longer ones the end is cut."
    )
    max_new_tokens: int = Field(128, ge=1, le=1_000_000, description="The most tokens of a reply.")
    template: Literal["auto", "alpaca", "chatml"] = Field(
        "auto",
        description="How messages are laid out; auto: by the template of the tokenizer "
        "(chat_template in its tokenizer_config.json), else alpaca. It is saved there.",
    )
    system: str | None = Field(
        None,
        min_length=1,
        description="What the system says first, where a conversation has no such message.",
    )


class Instruct(Task[InstructOptions, ReplyPrediction], AdaptsRecords, UsesTokenizer, WritesAnswers):
    """What the assistant says after what was said; evaluated by loss, ROUGE-L and exact match.

    Records have `messages` (role and content), ShareGPT's `conversations` (from and value), or
    Alpaca's `instruction`, `input` and `output`. A conversation is a sequence; only the replies and
    their ends are learned.
    """

    name: ClassVar[str] = "instruct"
    options_type: ClassVar[type[InstructOptions]] = InstructOptions
    head: ClassVar[str] = "causal_lm"
    best_by: ClassVar[str] = "loss"

    def __init__(self, options: InstructOptions) -> None:
        super().__init__(options)
        self._tokenizer: Tokenizer | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """`messages`."""
        return {MESSAGES: "a conversation: messages with a role and a content, or one text"}

    def usage(self, run: str) -> str:
        """In a conversation."""
        return f"pretune chat {run}"

    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        """Any of the three forms as `messages`."""
        return with_messages(records.mapped(columns, ()), replies=with_targets)

    def bind(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer; give it the template, which is saved with it."""
        self._tokenizer = tokenizer
        chosen = self.options.template
        if chosen != "auto" or ChatTemplate.of(tokenizer) is None:
            text = TEMPLATES["alpaca" if chosen == "auto" else chosen]
            tokenizer.settings["chat_template"] = text

    def layout(self, tokenizer: Tokenizer) -> TemplateLayout:
        """How conversations are laid out."""
        if tokenizer is not self._tokenizer:
            self.bind(tokenizer)
        found = TemplateLayout.of(tokenizer, self.options.system)
        assert found is not None  # noqa: S101 - bind saw to that
        return found

    def generation_entries(self) -> dict[str, Any]:
        """All tokens that end a reply: of itself transformers knows the end of text alone.

        A text that ends replies it can be told with `stop_strings`, which needs the tokenizer.
        """
        if self._tokenizer is None:
            return {}
        usual = self._tokenizer.end_id
        ends = self.layout(self._tokenizer).ends().tokens | ({usual} - {None})
        return {"eos_token_id": sorted(ends)} if ends else {}

    def feature_key(self) -> Any:
        """The template, too."""
        template = None if self._tokenizer is None else ChatTemplate.of(self._tokenizer)
        return [*super().feature_key(), None if template is None else template.text]

    def texts(self, records: Records) -> Iterator[str]:
        """All messages."""
        for row in range(len(records)):
            yield from (message["content"] for message in messages_of(records, row))

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """One conversation each; without targets what a reply is to be written to."""
        layout = self.layout(tokenizer)
        if with_targets:
            yield from self._learned(records, rows, layout, asked=False)
            return
        for row in rows:
            messages = messages_of(records, row)
            if messages[-1]["role"] == "assistant":  # which is written anew
                messages = messages[:-1]
            with _named(records, row):
                fitted = layout.fitted(self._begun(messages), self.options.room)
            cut = bool(fitted.dropped or fitted.cut)
            yield Feature(tokens=fitted.ids, record=row, truncated=cut)

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature | Skipped]:
        """The same; some last replies are to be written, too."""
        return self._learned(records, rows, self.layout(tokenizer), asked=True)

    def _begun(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """With the usual message of the system, where there is none."""
        if self.options.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.options.system}, *messages]

    def _learned(
        self, records: Records, rows: range, layout: TemplateLayout, *, asked: bool
    ) -> Iterator[Feature | Skipped]:
        most = self.options.max_length
        for row in rows:
            messages = messages_of(records, row)
            if not any(message["role"] == "assistant" for message in messages):
                yield Skipped(row, "no reply in it")
                continue
            with _named(records, row):
                spans = layout.spans(self._begun(messages))
            tokens, targets = targets_of(spans)
            cut = len(tokens) > most
            tokens, targets = tokens[:most], {n: values[:most] for n, values in targets.items()}
            if all(label == IGNORED for label in targets[NEXT]):
                yield Skipped(row, f"no reply within the first {most} tokens (task.max_length)")
                continue
            if asked:
                before = sum(len(span.ids) for span in spans[:-1])
                sampled = self.options.is_sample(row, len(records))
                targets[ASKED] = before if sampled and before <= len(tokens) else 0
            else:
                del targets[TURN]
            yield Feature(tokens=tokens, targets=targets, record=row, truncated=cut)

    def build(self, backbone: Backbone) -> nn.Module:
        """The family's own output layer."""
        return causal_lm(backbone)

    def forward(self, model: nn.Module, batch: PackedBatch) -> Replied:
        """Score the replies of the assistant."""
        return score_replies(model, batch, self.options)

    def write(self, model: nn.Module, outputs: Replied, batch: PackedBatch) -> Replied:
        """Write the replies that the batch asks for."""
        assert self._tokenizer is not None  # noqa: S101 - bound
        ends = self.layout(self._tokenizer).ends()
        return write_replies(model, outputs, batch, self.options, self._tokenizer, ends)

    def loss(self, outputs: Replied, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in tokens of replies."""
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
        """Perplexity, ROUGE-L, exact match."""
        return ReplyMetrics(features, _sample, matches)


@contextmanager
def _named(records: Records, row: int) -> Iterator[None]:
    """Errors say which record they are about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{records.where(row, MESSAGES)}: {error}") from None


def _sample(record: Mapping[str, Any], written: str) -> Sample:
    messages = record[MESSAGES]
    # What the user says after the last reply is neither learned nor replied to.
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    contents = [message["content"] for message in messages]
    return Sample(contents[:last], written, contents[last])
