"""Replies: what is foretold of some tokens of a conversation, and replies that are written.

What `chat` and `instruct` have in common. A conversation is one sequence; the target of each token
is the one after it where that is learned, and `IGNORED` elsewhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field
from torch import nn

from pretune.data.batch import PackedBatch, Selection
from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Generation, Prompt, Writer
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.base import Loss, Prediction
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import IGNORED, NEXT, CrossEntropyOptions, token_losses
from pretune.tokenizers.tokenizer import Tokenizer

#: Which turn of its conversation the token after each one belongs to.
TURN = "turn"
#: How many tokens of a sequence a reply is to be written after; 0: none is.
ASKED = "asked"
#: Replies that are written side by side.
ROWS = 128


class ReplyOptions(CrossEntropyOptions):
    """Options of tasks whose models reply."""

    max_new_tokens: int = Field(64, ge=1, le=1_000_000, description="The most tokens of a reply.")
    temperature: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="Of replies: above 1 bolder, below 1 safer; 0: always the likeliest token.",
    )
    top_k: int = Field(0, ge=0, description="Draw from the k likeliest tokens only; 0: from all.")
    top_p: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Draw from the likeliest tokens that have this share together; 1: from all.",
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=1000, description="Above 1: what was said already becomes less likely."
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Of what is drawn.")
    samples: int = Field(
        100,
        ge=0,
        description="In an evaluation, replies are written to so many conversations, spread over "
        "the data.",
    )

    @property
    def decoding(self) -> Decoding:
        """How replies are written."""
        return Decoding(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )

    @property
    def room(self) -> int:
        """The most tokens of a history that is to be replied to; the rest is for the reply."""
        return self.max_length - min(self.max_new_tokens, self.max_length // 2)

    def is_sample(self, row: int, count: int) -> bool:
        """Whether a record, of so many, is one of the `samples`."""
        wanted = min(self.samples, count)
        return row * wanted // count != (row - 1) * wanted // count


@dataclass(frozen=True)
class ReplyPrediction(Prediction):
    """A reply.

    Attributes:
        reply: its text.
        log_probability: of all its tokens, the end among them, in nats.
        tokens: how many.
    """

    reply: str
    log_probability: float
    tokens: int

    @classmethod
    def of(cls, found: Generation) -> ReplyPrediction:
        """From what was written."""
        return cls(found.text.strip(), found.logprob, len(found.tokens))

    @property
    def written(self) -> str:
        """The reply."""
        return self.reply


@dataclass(frozen=True)
class Replied:
    """What the model gives.

    Attributes:
        scores: of the tokens that are learned; None where nothing is foretold.
        select: which those are.
        written: replies by the place of the sequence in the batch.
    """

    scores: Scores | None
    select: Selection | None
    written: Mapping[int, Generation] = field(default_factory=dict)

    def loss(self, options: ReplyOptions) -> Loss:
        """Cross-entropy, counted in tokens that are learned."""
        assert self.scores is not None  # noqa: S101 - there are targets
        return Loss(self.scores.sum, self.scores.count, options.parts_of(self.scores))

    def each_loss(self) -> EachLoss:
        """Cross-entropy of each sequence, over its tokens that are learned."""
        assert self.scores is not None  # noqa: S101 - there are targets
        assert self.select is not None  # noqa: S101
        return token_losses(self.scores, self.select.layout)

    def predictions(self, batch: PackedBatch) -> list[ReplyPrediction | None]:
        """The reply to each sequence; None where none was asked for."""
        found = [self.written.get(i) for i in range(batch.num_sequences)]
        return [None if one is None else ReplyPrediction.of(one) for one in found]


@dataclass(frozen=True)
class Span:
    """Some tokens of a conversation that belong together.

    Attributes:
        ids: the tokens.
        turn: which turn they are of, from 0.
        learned: whether they are to be foretold.
    """

    ids: Sequence[int]
    turn: int = 0
    learned: bool = False


@dataclass(frozen=True)
class Ends:
    """What ends a reply besides the usual tokens.

    Attributes:
        tokens: of which each does.
        texts: that do, where no token says it.
    """

    tokens: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()


#: Of replies that end with the usual tokens alone.
USUAL = Ends()


def last_reply(parts: Sequence[ReplyPrediction | None]) -> ReplyPrediction:
    """Of the sequences of a record the last reply that was written; an empty one where none was."""
    return next((one for one in reversed(parts) if one is not None), ReplyPrediction("", 0.0, 0))


def targets_of(spans: Sequence[Span]) -> tuple[list[int], dict[str, Any]]:
    """What is read of a conversation, and `NEXT` and `TURN` of each token.

    The last token is not read, as nothing follows it, and the first one is never foretold.
    """
    ids = [token for span in spans for token in span.ids]
    learned = [token if span.learned else IGNORED for span in spans for token in span.ids]
    turns = [span.turn for span in spans for _ in span.ids]
    return ids[:-1], {NEXT: learned[1:], TURN: turns[1:]}


def score_replies(model: nn.Module, batch: PackedBatch, options: ReplyOptions) -> Replied:
    """Score the tokens that are learned; without targets there is nothing to score."""
    labels = batch.targets.get(NEXT)
    if labels is None:
        return Replied(None, None)
    select = batch.where(labels != IGNORED)
    scores = model(batch, select=select, labels=labels[select.rows], **options.how)
    return Replied(scores, select)


def write_replies(
    model: nn.Module,
    outputs: Replied,
    batch: PackedBatch,
    options: ReplyOptions,
    tokenizer: Tokenizer | None,
    ends: Ends = USUAL,
) -> Replied:
    """Write the replies that a batch asks for: without targets to every sequence.

    Args:
        model: a language model.
        outputs: from `score_replies`.
        batch: the sequences.
        options: how replies are written.
        tokenizer: of the model.
        ends: what ends a reply in addition to the usual tokens.
    """
    asked = batch.targets.get(ASKED)
    if asked is not None:
        counts = asked.tolist()
    elif NEXT not in batch.targets:
        counts = list(batch.layout.lengths)
    else:
        return outputs
    assert tokenizer is not None  # noqa: S101 - bound
    written = _written(model, batch, counts, options, tokenizer, ends)
    return replace(outputs, written=written)


def _written(
    model: Any,
    batch: PackedBatch,
    asked: Sequence[int],
    options: ReplyOptions,
    tokenizer: Tokenizer,
    ends: Ends,
) -> dict[int, Generation]:
    """Replies after the first so many tokens of the sequences, where those are not 0."""
    tokens, starts = batch.tokens.tolist(), batch.layout.starts
    where = [i for i, count in enumerate(asked) if count]
    if not where:
        return {}
    names = ("eos_token", "sep_token", "cls_token")
    stops = [tokenizer.special_id(name) for name in names]
    writer = Writer(
        model,
        tokenizer,
        device=batch.tokens.device,
        batch_size=ROWS,
        stop_tokens=[*(token for token in stops if token is not None), *ends.tokens],
        stop_texts=ends.texts,
    )
    histories = [tokens[starts[i] : starts[i] + asked[i]] for i in where]
    # Figures of many replies that all had the same luck would say little.
    prompts = [Prompt((), ids, salt=zlib.crc32(str(ids).encode())) for ids in histories]
    return dict(zip(where, writer.write(prompts, options.decoding), strict=True))
