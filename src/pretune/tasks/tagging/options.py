"""The options of `tag`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pretune.tasks.losses import CrossEntropyOptions
from pretune.tasks.tagging.schemes import Scheme


class TagOptions(CrossEntropyOptions):
    """Options of `tag`."""

    name: Literal["tag"] = Field("tag", description="A tag for each word: names, places, ...")
    max_length: int = Field(
        256,
        ge=8,
        description="The most tokens of a window; a longer sentence is read in several.",
    )
    overlap: int = Field(
        64,
        ge=0,
        description="How many tokens a window shares with the next one, at the most. Each word "
        "counts in the window that shows most around it.",
    )
    scheme: Scheme = Field("bio", description="How the model spells entities.")
    data_scheme: Scheme | Literal["auto"] = Field(
        "auto", description="How the data does; auto: as the training data look."
    )
    labels: list[str] | None = Field(
        None, description="What the tags of the data are called, in order, where they are numbers."
    )
    crf: bool = Field(
        False,
        description="A conditional random field on top: which tag follows which is learned, and "
        "only well-formed sequences are given. transformers does not read it.",
    )
    crf_rate: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="The field's learning rate, in learning rates of the model.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Before the last layer. Default: the model's own."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.overlap > self.max_length // 2:
            raise ValueError(
                f"overlap must be at most half of max_length: {self.max_length // 2} "
                f"(it is {self.overlap})"
            )
        if self.crf and (self.label_smoothing or self.z_loss):
            raise ValueError(
                "label_smoothing and z_loss are not for a crf: its loss has no classes"
            )
        return self

    @classmethod
    def of_length(cls, length: int, scheme: Scheme = "bio", *, crf: bool = False) -> Self:
        """The usual options for windows of so many tokens."""
        return cls(max_length=length, overlap=min(64, length // 4), scheme=scheme, crf=crf)
