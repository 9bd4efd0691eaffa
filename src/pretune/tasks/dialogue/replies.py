"""Replies of a model: the options they are written by, their scores, and writing them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field
from torch import Tensor
from typing_extensions import override

from pretune.data.batch import PackedBatch, Selection
from pretune.decoding.sampling import Decoding
from pretune.decoding.writer import Generation, Prompt, Writer
from pretune.models.heads.vocabulary import Scores
from pretune.tasks.base import Prediction
from pretune.tasks.dialogue.layouts import Ends
from pretune.tasks.losses import CrossEntropyOptions
from pretune.tokenizers.tokenizer import Tokenizer

#: Target of each token: the number of the message that the next token belongs to.
TURN = "turn"
#: Target of a sequence: a reply is to be written after this many of its tokens; 0: none is.
ASKED = "asked"
#: Replies that are written side by side.
REPLIES_AT_A_TIME = 128


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
        1.0, gt=0, le=1000, description="Above 1, tokens that occurred already become less likely."
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Seed of the random draws.")
    samples: int = Field(
        100,
        ge=0,
        description="How many conversations, spread over the data, are replied to in an "
        "evaluation.",
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
        """The maximum number of tokens of a history; the rest of `max_length` is for the reply."""
        return self.max_length - min(self.max_new_tokens, self.max_length // 2)

    def is_sample(self, row: int, count: int) -> bool:
        """Whether record `row` of `count` is one of the `samples`, which are evenly spread."""
        wanted = min(self.samples, count)
        return row * wanted // count != (row - 1) * wanted // count


@dataclass(frozen=True)
class ReplyPrediction(Prediction):
    """A reply.

    Attributes:
        reply: its text.
        log_probability: the sum over its tokens, the end included, in nats.
        tokens: how many tokens it has.
    """

    reply: str
    log_probability: float
    tokens: int

    @property
    @override
    def written(self) -> str:
        return self.reply


@dataclass(frozen=True)
class ReplyOutputs:
    """What a model returns for a batch of conversations.

    Attributes:
        scores: of the tokens that are learned; None without targets.
        select: which tokens those are; None without targets.
        written: replies by the position of their sequence in the batch.
    """

    scores: Scores | None
    select: Selection | None
    written: Mapping[int, Generation] = field(default_factory=dict)

    @property
    def scored(self) -> tuple[Scores, Selection]:
        """Scores and selection of a batch with targets."""
        assert self.scores is not None  # noqa: S101 - there are targets
        assert self.select is not None  # noqa: S101
        return self.scores, self.select


def write_replies(
    model: Any,
    batch: PackedBatch,
    asked: Tensor | None,
    *,
    options: ReplyOptions,
    tokenizer: Tokenizer,
    ends: Ends,
) -> dict[int, Generation]:
    """Continue sequences of a batch with replies.

    Args:
        model: a `LanguageModel`.
        batch: conversations.
        asked: `[B]` after how many tokens of each sequence its reply begins; 0: no reply. None:
            after the whole of every sequence.
        options: how replies are written.
        tokenizer: of the model.
        ends: what ends a reply in addition to the tokenizer's own end tokens.

    Returns:
        the replies by the position of their sequence in the batch.
    """
    lengths: Sequence[int] = batch.layout.lengths if asked is None else asked.tolist()
    places = [i for i, length in enumerate(lengths) if length]
    if not places:
        return {}
    special = [tokenizer.special_id(name) for name in ("eos_token", "sep_token", "cls_token")]
    writer = Writer(
        model,
        tokenizer,
        device=batch.tokens.device,
        batch_size=REPLIES_AT_A_TIME,
        stop_tokens=[*(token for token in special if token is not None), *ends.tokens],
        stop_texts=ends.texts,
    )
    tokens, starts = batch.tokens.tolist(), batch.layout.starts
    histories = [tokens[starts[i] : starts[i] + lengths[i]] for i in places]
    # Random numbers differ from prompt to prompt, but not with the batch a prompt is in.
    prompts = [Prompt((), ids, salt=zlib.crc32(str(ids).encode())) for ids in histories]
    return dict(zip(places, writer.write(prompts, options.decoding), strict=True))
