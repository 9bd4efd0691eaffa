"""Tasks whose models reply: `chat` (dialogues in turns) and `instruct` (messages by a template).

Both are one thing: a conversation is laid out as tokens, and the replies in it are learned. They
differ in the layout, the plain one or a chat template, and in the columns of their data.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn
from typing_extensions import override

from pretune.data.batch import Feature, Features, PackedBatch, Selection, Skipped
from pretune.data.readers.conversations import FORMS, MESSAGES, messages_of, with_messages
from pretune.data.records import Records
from pretune.decoding.continuations import Generation, Prompt
from pretune.decoding.decoding import Decoding
from pretune.decoding.writer import Writer
from pretune.errors import DataError, describe_value
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.vocabulary import Scores
from pretune.models.lora import kept_sums
from pretune.tasks.base import AdaptsRecords, Loss, ReadsWindows, Task, UsesTokenizer, WritesAnswers
from pretune.tasks.dialogue.layouts import (
    ConversationLayout,
    Excerpt,
    TemplateLayout,
    TurnLayout,
    give_template,
)
from pretune.tasks.dialogue.replies import (
    ASKED,
    TURN,
    ReplyMetrics,
    ReplyOptions,
    ReplyOutputs,
    ReplyPrediction,
    WrittenReply,
    agreement,
    diversity,
)
from pretune.tasks.distillation.teachable import TeachableTokens
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import IGNORED, NEXT, token_losses
from pretune.tokenizers.chat_template import ChatTemplate, Message
from pretune.tokenizers.tokenizer import Tokenizer

TURNS = "turns"
#: Replies that are written side by side.
REPLIES_AT_A_TIME = 128

R = TypeVar("R", bound=ReplyOptions)


class Dialogue(Task[R, ReplyPrediction], UsesTokenizer, WritesAnswers, TeachableTokens):
    """Replies to conversations; a subclass says how those are read and laid out.

    The target of each token is the next one where that is learned, and `IGNORED` elsewhere.
    """

    head: ClassVar[str] = "causal_lm"
    best_by: ClassVar[str] = "loss"
    column: ClassVar[str]  # the column of the data that holds a conversation

    def __init__(self, options: R) -> None:
        super().__init__(options)
        self._tokenizer: Tokenizer | None = None

    # What `chat` and `instruct` differ in.

    @abstractmethod
    def layout(self, tokenizer: Tokenizer) -> ConversationLayout:
        """How conversations become tokens."""

    @abstractmethod
    def messages(self, records: Records, row: int) -> list[Message]:
        """The conversation of a record; the assistant's messages are learned.

        Raises:
            DataError: the record has no conversation; names file, line and item.
        """

    def unanswered(self, messages: list[Message]) -> list[Message]:
        """The part of a conversation that a prediction replies to."""
        return messages

    # Preprocessor: records to features.

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.layout(tokenizer)  # raises if the tokenizer cannot lay out conversations

    @override
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        if not self.without_text(records.rows[row], with_targets=with_targets):
            self.messages(records, row)

    @override
    def texts(self, records: Records) -> Iterator[str]:
        for row, record in enumerate(records.rows):
            if not self.without_text(record, with_targets=True):
                yield from (message["content"] for message in self.messages(records, row))

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        """Excerpts of conversations; without targets the histories that are replied to."""
        if with_targets:
            yield from self._learned(records, rows, tokenizer, evaluation=False)
            return
        layout = self.layout(tokenizer)
        for row in rows:
            messages = self.unanswered(self.messages(records, row))
            with self._naming(records, row):
                read = layout.fitted(messages, self.options.room)
            yield Feature(read.ids, record=row, truncated=bool(read.dropped or read.cut))

    @override
    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature | Skipped]:
        """The same excerpts; the last replies of some conversations are to be written, too."""
        return self._learned(records, rows, tokenizer, evaluation=True)

    def _learned(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, evaluation: bool
    ) -> Iterator[Feature | Skipped]:
        layout, size = self.layout(tokenizer), self.options.max_length
        # Lay out all conversations, then tokenize them together, which is faster.
        conversations, parts = [self.messages(records, row) for row in rows], []
        for row, messages in zip(rows, conversations, strict=True):
            with self._naming(records, row):
                replied = any(message["role"] == "assistant" for message in messages[1:])
                parts.append(layout.parts(messages) if replied else [])
        for row, spans in zip(rows, layout.encode(parts), strict=True):
            if not spans:
                yield Skipped(row, "no reply in it")
                continue
            # Which reply, if any, an evaluation asks for: the last one.
            sampled = evaluation and self.options.is_sample(row, len(records))
            asked = spans[-1].turn if sampled else None
            excerpts = layout.excerpts(spans, size)
            features = [_feature(part, row, asked, evaluation=evaluation) for part in excerpts]
            if all(label == IGNORED for feature in features for label in feature.targets[NEXT]):
                yield Skipped(row, f"no reply within the first {size} tokens (task.max_length)")
            else:
                yield from features

    @contextmanager
    def _naming(self, records: Records, row: int) -> Iterator[None]:
        """Errors name the record they are about."""
        try:
            yield
        except DataError as error:
            raise DataError(f"{records.where(row, self.column)}: {error}") from None

    # Head: a language model that scores what is learned.

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        return build_head(backbone, "causal_lm")

    @override
    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> ReplyOutputs:
        """Score the tokens that are learned; without targets there is nothing to score."""
        labels = batch.targets.get(NEXT)
        if labels is None:
            return ReplyOutputs(None, None)
        select = self.scored_tokens(batch)
        options = {**self.options.score_options, **more}
        return ReplyOutputs(
            model(batch, select=select, labels=labels[select.rows], **options), select
        )

    @override
    def loss(self, outputs: ReplyOutputs, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in tokens that are learned."""
        scores, _ = outputs.scored
        return Loss(scores.sum, scores.count, self.options.loss_parts(scores))

    # Learning from a teacher

    @override
    def scored_tokens(self, batch: PackedBatch) -> Selection:
        return batch.where(batch.targets[NEXT] != IGNORED)

    @override
    def token_scores(self, outputs: ReplyOutputs) -> Scores:
        return outputs.scored[0]

    # Answers: replies, written after the forward pass.

    @override
    def write(self, model: Any, outputs: ReplyOutputs, batch: PackedBatch) -> ReplyOutputs:
        asked = batch.targets.get(ASKED)
        if NEXT in batch.targets and asked is None:
            return outputs  # as in training: no replies are asked for
        # After how many tokens of each sequence its reply begins.
        lengths: Sequence[int] = batch.layout.lengths if asked is None else asked.tolist()
        places = [i for i, length in enumerate(lengths) if length]
        if not places:
            return outputs
        tokens, starts = batch.tokens.tolist(), batch.layout.starts
        histories = [tokens[starts[i] : starts[i] + lengths[i]] for i in places]
        # Random numbers differ from prompt to prompt, but not with the batch a prompt is in.
        prompts = [Prompt((), ids, salt=zlib.crc32(str(ids).encode())) for ids in histories]
        written = self.written(model, batch.tokens.device, prompts, self.options.decoding)
        return replace(outputs, written=dict(zip(places, written, strict=True)))

    def written(
        self, model: Any, device: torch.device, prompts: Sequence[Prompt], decoding: Decoding
    ) -> list[Generation]:
        """Write replies, ordered by prompt and then by sample."""
        tokenizer = self._tokenizer
        assert tokenizer is not None  # noqa: S101 - bound
        # What ends a reply: the tokenizer's own end tokens, and what the layout adds.
        ends = self.layout(tokenizer).ends()
        special = [tokenizer.special_id(name) for name in ("eos_token", "sep_token", "cls_token")]
        writer = Writer(
            model,
            tokenizer,
            device=device,
            batch_size=REPLIES_AT_A_TIME,
            stop_tokens=[*(token for token in special if token is not None), *ends.tokens],
            stop_texts=ends.texts,
        )
        with kept_sums(model):
            return writer.write(prompts, decoding)

    @override
    def predict(self, outputs: ReplyOutputs, batch: PackedBatch) -> list[ReplyPrediction | None]:
        """The reply to each sequence; None where none was asked for."""
        replies = {
            place: ReplyPrediction(written.text.strip(), written.logprob, len(written.tokens))
            for place, written in outputs.written.items()
        }
        return [replies.get(place) for place in range(batch.num_sequences)]

    @override
    def combine(
        self, parts: Sequence[ReplyPrediction | None], record: Mapping[str, Any]
    ) -> ReplyPrediction:
        """The last reply that was written; an empty one for most records of an evaluation."""
        replies = (reply for reply in reversed(parts) if reply is not None)
        return next(replies, self.empty_answer())

    @override
    def empty_answer(self) -> ReplyPrediction:
        return ReplyPrediction("", 0.0, 0)

    # Scorer.

    @override
    def each_loss(self, outputs: ReplyOutputs, batch: PackedBatch) -> EachLoss:
        scores, select = outputs.scored
        return token_losses(scores, select.layout)


def _feature(excerpt: Excerpt, row: int, asked: int | None, *, evaluation: bool) -> Feature:
    """A sequence with its targets; `asked` is the number of the reply that is to be written."""
    spans, truncated = excerpt
    tokens = [(token, span.turn, span.learned) for span in spans for token in span.ids]
    # The last token is not read, as nothing follows it; the first one is not predicted.
    read = [token for token, _, _ in tokens[:-1]]
    labels = [token if learned else IGNORED for token, _, learned in tokens[1:]]
    targets: dict[str, Any] = {NEXT: labels}
    if evaluation:
        targets[TURN] = [turn for _, turn, _ in tokens[1:]]
        # The reply begins after these tokens; 0 if none of it is in this excerpt.
        own = (i for i, (_, turn, learned) in enumerate(tokens) if learned and turn == asked)
        targets[ASKED] = next(own, 0)
    return Feature(read, targets=targets, record=row, truncated=truncated)


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
        description="Read dialogues backwards: which turn may come before these? Such a model "
        "scores the replies of another one: pretune chat RUN --mmi THIS.",
    )


class Chat(Dialogue[ChatOptions], ReadsWindows):
    """Predicts each turn from those before it; evaluated by perplexity and written replies.

    `[CLS] turn [SEP] turn [SEP]`: one sequence for a dialogue. A dialogue longer than `max_length`
    is read in windows of whole turns that begin with turns of the window before; every turn is
    learned once.
    """

    name: ClassVar[str] = "chat"
    options_type: ClassVar[type[ChatOptions]] = ChatOptions
    column: ClassVar[str] = TURNS
    inputs: ClassVar[dict[str, str]] = {TURNS: "the dialogue: a list of texts, oldest first"}

    @property
    @override
    def truncation_note(self) -> str:
        return f"had a turn too long for windows of {self.options.max_length} tokens, which was cut"

    @override
    def usage(self, run: str) -> str:
        return f"pretune chat RUN --mmi {run}" if self.options.reverse else f"pretune chat {run}"

    @override
    def layout(self, tokenizer: Tokenizer) -> TurnLayout:
        return TurnLayout.of(tokenizer)

    @override
    def messages(self, records: Records, row: int) -> list[Message]:
        # A single text is one turn.
        value = records.rows[row].get(TURNS)
        value = [value] if isinstance(value, str) else value
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
                raise DataError(f"{where}: an empty turn", "Write its text, or remove the turn.")
            records.checked(text, row, TURNS, item)
        # What is not learned is the user's.
        first = "assistant" if self.options.learn == "all" else "user"
        turns = self._in_order(turns)
        return [{"role": "assistant" if i else first, "content": t} for i, t in enumerate(turns)]

    def _in_order(self, turns: list[str]) -> list[str]:
        return turns[::-1] if self.options.reverse else turns

    @override
    def metrics(self, features: Features | None = None) -> ReplyMetrics:
        """Perplexity; distinct-1 and -2."""
        return ReplyMetrics(features, self._beside, diversity)

    def _beside(self, record: Mapping[str, Any], reply: str) -> WrittenReply:
        *history, reference = self._in_order(list(record[TURNS]))
        return WrittenReply(history, reply, reference)

    @override
    def config_entries(self) -> dict[str, Any]:
        """The tokens that `generate` of transformers begins and ends with."""
        if self._tokenizer is None:
            return {}
        layout = TurnLayout.of(self._tokenizer)
        begin = layout.begin[0] if layout.begin else layout.end
        return {"bos_token_id": begin, "eos_token_id": layout.end}


class InstructOptions(ReplyOptions):
    """Options of `instruct`."""

    name: Literal["instruct"] = Field("instruct", description="An instruction, and what answers.")
    max_length: int = Field(
        512, ge=3, description="The most tokens of a conversation; of longer ones the end is cut."
    )
    max_new_tokens: int = Field(128, ge=1, le=1_000_000, description="The most tokens of a reply.")
    template: Literal["auto", "alpaca", "chatml", "plain"] = Field(
        "auto",
        description="How messages are laid out; auto: by the template of the tokenizer "
        "(chat_template in its tokenizer_config.json), else alpaca. It is saved there.",
    )
    system: str | None = Field(
        None, min_length=1, description="The system message of conversations that have none."
    )


class Instruct(Dialogue[InstructOptions], AdaptsRecords):
    """Writes the assistant's next message; evaluated by loss, ROUGE-L and exact match.

    Records have `messages` (role and content), ShareGPT's `conversations` (from and value),
    Alpaca's `instruction`, `input` and `output`, or `prompt` and `completion`. A conversation is
    one sequence; only the replies and their ends are learned.
    """

    name: ClassVar[str] = "instruct"
    options_type: ClassVar[type[InstructOptions]] = InstructOptions
    column: ClassVar[str] = MESSAGES
    inputs: ClassVar[dict[str, str]] = {
        MESSAGES: "a conversation: messages with a role and a content, or one text"
    }
    sources: ClassVar[tuple[str, ...]] = tuple({name for form in FORMS.values() for name in form})

    @override
    def usage(self, run: str) -> str:
        return f"pretune chat {run}"

    @override
    def adapted(self, records: Records, columns: Mapping[str, str], with_targets: bool) -> Records:
        """Turn any of the forms into `messages`."""
        return with_messages(records.mapped(columns, ()), replies=with_targets)

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer, and give it the template, which is saved with it.

        Raises:
            CheckpointError: the tokenizer's own template cannot be used, or it has no token to end
                a reply with where the template needs one.
        """
        give_template(tokenizer, self.options.template)
        super().bind(tokenizer)

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped]:
        if with_targets:
            self.layout(tokenizer).require_end()
        return super().features(records, rows, tokenizer, with_targets=with_targets)

    @override
    def layout(self, tokenizer: Tokenizer) -> TemplateLayout:
        if tokenizer is not self._tokenizer:
            self.bind(tokenizer)
        layout = TemplateLayout.of(tokenizer, self.options.system)
        assert layout is not None  # noqa: S101 - bind gave the tokenizer a template
        return layout

    @override
    def messages(self, records: Records, row: int) -> list[Message]:
        return [*messages_of(records, row)]

    @override
    def unanswered(self, messages: list[Message]) -> list[Message]:
        # A reply at the end is written anew.
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages

    @override
    def feature_key(self) -> Any:
        template = None if self._tokenizer is None else ChatTemplate.of(self._tokenizer)
        return [*super().feature_key(), None if template is None else template.text]

    @override
    def metrics(self, features: Features | None = None) -> ReplyMetrics:
        """Perplexity, ROUGE-L, exact match."""
        return ReplyMetrics(features, self._beside, agreement)

    def _beside(self, record: Mapping[str, Any], reply: str) -> WrittenReply:
        messages = record[MESSAGES]
        # Messages of the user after the last reply are neither learned nor replied to.
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        contents = [message["content"] for message in messages]
        return WrittenReply(contents[:last], reply, contents[last])

    @override
    def generation_entries(self) -> dict[str, Any]:
        """All tokens that end a reply: by itself transformers knows the end of text alone.

        A text that ends replies cannot be saved there: transformers takes it as `stop_strings` of
        `generate`, with the tokenizer.
        """
        if self._tokenizer is None:
            return {}
        own = self._tokenizer.end_id
        ends = self.layout(self._tokenizer).ends().tokens | ({own} - {None})
        return {"eos_token_id": sorted(ends)} if ends else {}
