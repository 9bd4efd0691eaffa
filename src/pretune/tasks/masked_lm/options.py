"""The options of `mask_lm`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pretune.data.masking import MaskRule
from pretune.tasks.losses import CrossEntropyOptions

#: Tokens of the shortest pair: two, and the special ones.
FEWEST = 5


class MaskLmOptions(CrossEntropyOptions):
    """Options of `mask_lm`."""

    name: Literal["mask_lm"] = Field(
        "mask_lm", description="Guess masked tokens: BERT's pre-training, and filling gaps."
    )
    top_k: int = Field(5, ge=1, le=1000, description="How many candidates to give for each gap.")
    mask: Literal["tokens", "words", "spans"] = Field(
        "tokens",
        description="What is masked together: single tokens, whole words, or spans of words "
        "(SpanBERT).",
    )
    mask_share: float = Field(
        0.15, gt=0, le=1, description="The share of tokens (or words) to be guessed."
    )
    as_mask: float = Field(
        0.8, ge=0, le=1, description="The share of those that become the mask token."
    )
    as_random: float = Field(
        0.1, ge=0, le=1, description="The share that become a random token; the rest stay."
    )
    words: Literal["tokenizer", "jieba"] = Field(
        "tokenizer",
        description="What finds words for masks of words and spans; jieba finds Chinese ones too "
        "(extra: zh).",
    )
    span_p: float = Field(
        0.2, gt=0, lt=1, description="spans: of the geometric distribution of their length."
    )
    span_max: int = Field(10, ge=1, description="spans: the longest, in words.")
    next: Literal["none", "nsp", "sop"] = Field(
        "none",
        description="What is learned besides: nsp: does the second segment follow the first "
        "(BERT); sop: are they in their order (ALBERT). A record is a document.",
    )
    short_share: float = Field(
        0.1, ge=0, le=1, description="nsp, sop: the share of pairs that are shorter at random."
    )
    dupe: int = Field(
        1, ge=1, description="nsp, sop: so many copies of the data, each split otherwise."
    )
    evaluate: Literal["masked", "each"] = Field(
        "masked",
        description="masked: as in training, with masks that are always the same; each: mask each "
        "token in turn (pseudo-perplexity), which takes as many passes as there are tokens.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.as_mask + self.as_random > 1 + 1e-9:
            raise ValueError("as_mask and as_random are shares of a whole: together at most 1")
        if self.words == "jieba" and self.mask == "tokens":
            raise ValueError("words: jieba is for mask: words or mask: spans")
        if self.next != "none" and self.max_length < FEWEST:
            raise ValueError(f"pairs need max_length: {FEWEST} or more")
        return self

    def rule(self) -> MaskRule:
        """How masks are drawn."""
        return MaskRule(
            *(self.mask, self.mask_share, self.as_mask, self.as_random),
            *(self.span_p, self.span_max),
        )
