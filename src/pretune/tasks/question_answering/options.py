"""The options of `answer`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pretune.tasks.base import TaskOptions

#: `[CLS] question [SEP] passage [SEP]`.
SPECIAL = 3


class AnswerOptions(TaskOptions):
    """Options of `answer`."""

    name: Literal["answer"] = Field(
        "answer", description="The span of a passage that answers a question."
    )
    max_length: int = Field(
        384,
        ge=8,
        description="The most tokens of a window: the question and a part of the passage. A longer "
        "passage is read in several.",
    )
    doc_stride: int = Field(
        128,
        ge=0,
        description="How many tokens of the passage a window shares with the next one (what "
        "transformers calls stride).",
    )
    max_question_length: int = Field(
        64, ge=1, description="The most tokens of a question; longer ones are cut."
    )
    max_answer_length: int = Field(30, ge=1, description="The most tokens of an answer.")
    no_answer: bool = Field(
        False,
        description="Whether a passage may hold no answer (SQuAD 2.0). From which score on none is "
        "given is chosen on the validation data and kept with the model.",
    )
    n_best: int = Field(20, ge=1, description="How many spans compete for the probability.")
    match: Literal["auto", "words", "characters"] = Field(
        "auto",
        description="How answers are compared with the right ones: as SQuAD does it, by words; or "
        "as CMRC 2018 does it, by Chinese characters. auto: by characters where most right answers "
        "have some.",
    )

    @model_validator(mode="after")
    def _room(self) -> Self:
        room = self.max_length - self.max_question_length - SPECIAL
        if room <= self.doc_stride:
            raise ValueError(
                f"with max_length: {self.max_length} and max_question_length: "
                f"{self.max_question_length} a window has room for {room} tokens of the passage, "
                f"so doc_stride must be less (it is {self.doc_stride})"
            )
        if self.no_answer and self.match == "characters":
            raise ValueError("match: characters is CMRC 2018's, where every question has an answer")
        return self

    @classmethod
    def of_length(cls, length: int, *, no_answer: bool = False) -> Self:
        """The usual options, made to fit windows of so many tokens."""
        question = min(64, length // 4)
        stride = min(128, (length - question - SPECIAL) // 2)
        return cls(
            max_length=length,
            max_question_length=question,
            doc_stride=stride,
            no_answer=no_answer,
        )
