"""The next token: language models that read from left to right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import nn

from pretune.corpus.store import StoredDocuments
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, Layout, PackedBatch, Selection
from pretune.data.records import Records
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.vocabulary import Scores
from pretune.models.language_model import StatefulLM
from pretune.tasks.base import (
    CarriesState,
    Loss,
    Prediction,
    ReadsCorpus,
    ReadsStream,
    ReadsWindows,
    Task,
    usual_length,
)
from pretune.tasks.causal_lm.stored import edge_of, stored_blocks
from pretune.tasks.grading import EachLoss
from pretune.tasks.losses import IGNORED, NEXT, CrossEntropyOptions, token_losses, with_perplexity
from pretune.text.chunks import split_text
from pretune.tokenizers.tokenizer import Tokenizer


class CausalLmOptions(CrossEntropyOptions):
    """Options of `causal_lm`."""

    name: Literal["causal_lm"] = Field("causal_lm", description="The next token, left to right.")
    boundaries: bool = Field(
        True,
        description="Whether blocks end where texts end, so that no token sees another text; false "
        "cuts one endless stream of texts into blocks, as GPT-2 did.",
    )
    carry_state: bool | None = Field(
        None,
        description="Whether each block goes on with the state after the one before: truncated "
        "back-propagation through time. Default: where the model keeps a state (rnn, gru, lstm, "
        "nnlm).",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="In evaluations and predictions each block begins so many tokens after the one "
        "before and foretells only what that one did not: with less than max_length, tokens have "
        "at least max_length - stride others before them, except in the first block of a text. "
        "Default: blocks have nothing in common.",
    )

    @model_validator(mode="after")
    def _reaches_every_token(self) -> Self:
        if self.stride is not None and self.stride > self.max_length:
            raise ValueError(
                f"a stride of {self.stride} is more than max_length, {self.max_length}: what lies "
                "between two blocks would not be foretold"
            )
        return self


@dataclass(frozen=True)
class LmPrediction(Prediction):
    """How probable a text is to the model.

    Attributes:
        tokens: how many were foretold.
        log_probability: of all of them, in nats.
        perplexity: exp of the mean over the tokens; None where there are none.
    """

    tokens: int
    log_probability: float
    perplexity: float | None

    @classmethod
    def of(cls, tokens: int, nats: float) -> Self:
        """From what so many tokens cost."""
        return cls(tokens, -nats, math.exp(min(nats / tokens, 700.0)) if tokens else None)


class CausalLm(
    Task[CausalLmOptions, LmPrediction], CarriesState, ReadsCorpus, ReadsStream, ReadsWindows
):
    """Each token from those before it in its block; evaluated by perplexity and bits.

    A text is `END tokens END`, where the tokenizer has an end of text (`<|endoftext|>`, `[SEP]`):
    the first token is foretold from it, and so is where the text ends. A block of L tokens
    foretells L tokens: the last one's target is the first token of the next block.
    """

    name: ClassVar[str] = "causal_lm"
    options_type: ClassVar[type[CausalLmOptions]] = CausalLmOptions
    head: ClassVar[str] = "causal_lm"
    best_by: ClassVar[str] = "loss"

    @property
    def inputs(self) -> dict[str, str]:
        """`text`."""
        return {"text": "a text"}

    def usage(self, run: str) -> str:
        """With the beginning of a text."""
        return f"pretune generate {run} --prompt TEXT"

    def isolated(self) -> Self:
        """Blocks end where texts end, and no state goes on from text to text."""
        return type(self)(self.options.model_copy(update={"boundaries": True}))

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature]:
        """Blocks of at most `max_length` tokens, with the token that follows each."""
        step = self._step(evaluation=not with_targets)
        return self._blocks(_read(records, rows, tokenizer), step)

    def evaluation_features(
        self, records: Records, rows: range, tokenizer: Tokenizer
    ) -> Iterable[Feature]:
        """The same blocks, or with `stride` such as have some tokens in common."""
        step = self._step(evaluation=True)
        return self._blocks(_read(records, rows, tokenizer), step)

    def _blocks(self, texts: Iterable[_Stream], step: int) -> Iterator[Feature]:
        for text in texts if self.options.boundaries else [_Stream.joined(list(texts))]:
            yield from text.blocks(self.options.max_length, step)

    def _step(self, *, evaluation: bool) -> int:
        """How many tokens after the one before a block begins."""
        stride = self.options.stride if evaluation else None
        return self.options.max_length if stride is None else stride

    def stored_features(
        self,
        documents: StoredDocuments,
        tokenizer: Tokenizer,
        *,
        evaluation: bool,
        progress: Callable[[int], None] | None,
    ) -> Features:
        """The same blocks, of the tokens on the disk."""
        options = self.options
        step = self._step(evaluation=evaluation)
        return stored_blocks(documents, tokenizer, options.max_length, step, options.boundaries)

    def build(self, backbone: Backbone) -> nn.Module:
        """The family's own output layer.

        Raises:
            CheckpointError: `carry_state`, and the model keeps no state; or `stride`, and it does.
        """
        kind = backbone.config.model_type
        if self.options.stride is not None and not backbone.has_attention:
            raise CheckpointError(
                f"task.stride: a {kind} keeps its state from block to block, and so knows what was "
                "before",
                "Leave it out.",
            )
        if self.options.carry_state and backbone.has_attention:
            raise CheckpointError(
                f"task.carry_state: a {kind} keeps no state from block to block",
                "Leave it out, or train a model that does: model.from=lstm-small (or rnn-small, "
                "gru-small, nnlm).",
            )
        return build_head(backbone, "causal_lm")

    def forward(self, model: nn.Module, batch: PackedBatch) -> Any:
        """The scores of the tokens that follow."""
        return self._scored(model, batch)

    def follows(self, model: nn.Module, features: Features) -> Array | None:
        """The blocks of a text; without `boundaries` all blocks."""
        if self.options.carry_state is False or not isinstance(model, StatefulLM):
            return None
        return features.continues if self.options.boundaries else np.arange(len(features)) > 0

    def carry(self, model: nn.Module, batch: PackedBatch, state: Any) -> tuple[Any, Any]:
        """The scores, and where each block was left."""
        scores = self._scored(model, batch, state=state)
        return scores, scores.state

    def _scored(self, model: nn.Module, batch: PackedBatch, **more: Any) -> Any:
        # Blocks that are trained on have nothing in common, and so no token to leave out.
        select = None if model.training else self._foretold(batch)
        labels = batch.targets[NEXT]
        if select is not None:
            labels = labels[select.rows]
        return model(batch, select=select, labels=labels, **self.options.score_options, **more)

    def _foretold(self, batch: PackedBatch) -> Selection | None:
        """The tokens whose next one the block before has not foretold; None: all."""
        if self.options.stride is None:
            return None
        return batch.where(batch.targets[NEXT] != IGNORED)

    def _layout(self, batch: PackedBatch) -> Layout:
        """How many tokens of each block are foretold."""
        select = self._foretold(batch)
        return batch.layout if select is None else select.layout

    def loss(self, outputs: Scores, batch: PackedBatch) -> Loss:
        """Cross-entropy, counted in tokens."""
        return Loss(outputs.sum, outputs.count, self.options.loss_parts(outputs))

    def predict(self, outputs: Scores, batch: PackedBatch) -> list[LmPrediction]:
        """How probable each block is; a text longer than `max_length` is several."""
        layout = self._layout(batch)
        each = zip(layout.lengths, outputs.each(layout), strict=True)
        return [LmPrediction.of(tokens, nats) for tokens, nats in each]

    def combine(self, parts: Sequence[LmPrediction], record: Mapping[str, Any]) -> LmPrediction:
        """How probable the whole text is; each block knows but its own beginning."""
        tokens = sum(part.tokens for part in parts)
        nats = -sum(part.log_probability for part in parts)
        return LmPrediction.of(tokens, nats)

    def each_loss(self, outputs: Scores, batch: PackedBatch) -> EachLoss:
        """Cross-entropy of each block."""
        return token_losses(outputs, self._layout(batch))

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss and perplexity."""
        return with_perplexity(super().figures(sums))

    def metrics(self, features: Features | None = None) -> CausalLmMetrics:
        """Perplexity, accuracy, bits per character and byte."""
        return CausalLmMetrics()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...LMHeadModel`, or one of our own classics."""
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith(("LMHeadModel", "ForCausalLM")):
            return None
        return cls(CausalLmOptions(max_length=usual_length(config, 1024, "n_positions")))


@dataclass(frozen=True)
class _Stream:
    """Tokens to be cut into blocks.

    Attributes:
        ids: `[N]` int32.
        chars: `[N + 1]` characters before each token, and in all; and likewise
        bytes: `[N + 1]` bytes in UTF-8.
        rows: `[N]` the record each token is of.
    """

    ids: Array
    chars: Array
    bytes: Array
    rows: Array

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, row: int) -> Self:
        """A text, between two ends of text where the tokenizer has one."""
        edge = edge_of(tokenizer)
        ids, ends, base = [np.array(edge)], [np.zeros(len(edge))], 0
        for piece in split_text(text):
            # As in a prepared corpus: a text that spells `<|endoftext|>` does not end there.
            (encoding,) = tokenizer.encode_bare([piece], literal=True)
            ids.append(np.array(encoding.ids))
            ends.append(base + np.array([after for _, after in encoding.offsets]))
            base += len(piece)
        ids.append(np.array(edge))
        ends.append(np.full(len(edge), base))
        tokens = np.concatenate(ids).astype(np.int32)
        # A token ends where its last character does; several may share one (bytes of an emoji).
        chars = np.concatenate([[0], *ends]).astype(np.int64)
        return cls(tokens, chars, _bytes_before(text)[chars], np.full(len(tokens), row))

    @classmethod
    def joined(cls, texts: list[Self]) -> Self:
        """One after the other; the end of one text is the beginning of the next."""
        chars = np.cumsum([0, *(text.chars[-1] for text in texts)])
        sizes = np.cumsum([0, *(text.bytes[-1] for text in texts)])
        return cls(
            np.concatenate([text.ids for text in texts]),
            np.concatenate([[0], *(t.chars[1:] + n for t, n in zip(texts, chars, strict=False))]),
            np.concatenate([[0], *(t.bytes[1:] + n for t, n in zip(texts, sizes, strict=False))]),
            np.concatenate([text.rows for text in texts]),
        )

    def blocks(self, size: int, step: int) -> Iterator[Feature]:
        """Blocks of at most `size` tokens, each with the token after it as its last target.

        Each begins `step` tokens after the one before, and has as targets what that one had not.
        """
        last, done = len(self.ids) - 1, 0
        for start in range(0, last, step):
            if done == last:
                return
            stop = min(start + size, last)
            following = self.ids[start + 1 : stop + 1].astype(np.int64)
            following[: done - start] = IGNORED
            yield Feature(
                tokens=self.ids[start:stop],  # type: ignore[arg-type]
                targets={
                    NEXT: following,
                    # What is foretold are the tokens from done + 1 to stop.
                    "chars": int(self.chars[stop + 1] - self.chars[done + 1]),
                    "bytes": int(self.bytes[stop + 1] - self.bytes[done + 1]),
                },
                record=int(self.rows[start]),
            )
            done = stop


def _read(records: Records, rows: range, tokenizer: Tokenizer) -> Iterator[_Stream]:
    """Some texts, tokenized."""
    return (_Stream.of(records.text(row, "text"), tokenizer, row) for row in rows)


def _bytes_before(text: str) -> Array:
    """`[len(text) + 1]`: bytes in UTF-8 before each character, and in all."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    each = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(each)])


class CausalLmMetrics:
    """Over all tokens that were foretold."""

    def __init__(self) -> None:
        self._nats, self._right, self._tokens, self._chars, self._bytes = 0.0, 0, 0, 0, 0

    def update(self, outputs: Scores, batch: PackedBatch) -> None:
        """Take in one batch."""
        self._nats += float(outputs.cross_entropy)
        self._right += outputs.right
        self._tokens += outputs.count
        self._chars += int(batch.targets["chars"].sum())
        self._bytes += int(batch.targets["bytes"].sum())

    def merge(self, other: Self) -> None:
        """Add another's sums."""
        self._nats += other._nats
        self._right += other._right
        self._tokens += other._tokens
        self._chars += other._chars
        self._bytes += other._bytes

    def result(self) -> dict[str, float]:
        """`perplexity` a token; `bits_per_character` and `bits_per_byte`, which do not depend on
        the tokenizer; `accuracy`: how often the most probable token is the one that follows."""
        tokens = max(self._tokens, 1)
        bits = self._nats / math.log(2)
        return {
            "perplexity": math.exp(min(self._nats / tokens, 700.0)),
            "bits_per_character": bits / max(self._chars, 1),
            "bits_per_byte": bits / max(self._bytes, 1),
            "accuracy": self._right / tokens,
        }

    def details(self) -> dict[str, Any]:
        """How many tokens, characters and bytes were foretold."""
        return {"tokens": self._tokens, "characters": self._chars, "bytes": self._bytes}
