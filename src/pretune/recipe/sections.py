"""The sections of a recipe that say what is trained, on what."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pretune.data.records import MAX_CHARS


class Section(BaseModel):
    """Unknown keys are refused, values are checked, nothing changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class TokenizerSection(Section):
    """A tokenizer that is trained on the training data before the model is; `pretune tokenizer`
    does the same beforehand."""

    kind: Literal["wordpiece", "bpe", "char"] = Field(
        "bpe", description="wordpiece (BERT), bpe (GPT-2, on bytes) or char."
    )
    vocab_size: int | None = Field(
        None,
        ge=1,
        le=10**7,
        description="The most entries. Default: 30522 for wordpiece, 50257 for bpe, all characters "
        "for char.",
    )
    joint: bool = Field(
        True,
        description="For translation: one vocabulary for both sides; false: one for each, of "
        "vocab_size entries each.",
    )


class ModelSection(Section):
    """Where the weights come from."""

    source: str = Field(
        "minilm",
        alias="from",
        description="A folder in the Hugging Face layout, a run folder, a Hub id, or minilm.",
    )
    tokenizer: str | None = Field(
        None,
        description="A folder with another tokenizer than the model's own, a run, or a Hub id.",
    )
    train_tokenizer: TokenizerSection | None = Field(
        None,
        description="For random weights: train a tokenizer on data.train first, e.g. {kind: bpe, "
        "vocab_size: 8000}. Not where `tokenizer` names one, or data.train is a prepared corpus.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="For random weights: what differs from the size named in `from`, by the names "
        "of config.json, e.g. {n_layer: 4, n_embd: 128, n_head: 4}.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="In the hidden layers. Default: the model's own."
    )
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="On the attention weights. Default: the model's own."
    )
    new_tokens: list[str] = Field(
        default_factory=list,
        description="Words to add to the vocabulary, each one whole; their embeddings start at the "
        "mean of the others.",
    )
    vocab_multiple: int = Field(
        1, ge=1, le=10**6, description="Pad the vocabulary to a multiple of this (64 suits GPUs)."
    )
    allow_pickle: bool = Field(
        False,
        description="Read pytorch_model.bin too, by torch's restricted unpickler. Only from people "
        "you trust.",
    )


class DataSection(Section):
    """What is learned from."""

    train: str = Field(
        description="A .jsonl, .csv, .tsv, .parquet or .txt file, a folder of .txt files, a Hub "
        "dataset owner/name[:config]:split, or a folder that `pretune prepare` made."
    )
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.1,
        description="The same; or a share of the training data to hold back (0.1); or null.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="What the data calls the task's columns, e.g. {text: body, label: intent}.",
    )
    encoding: str = Field("utf-8", description="Of text files, e.g. gb18030.")
    quoting: Literal["auto", "standard", "none"] = Field(
        "auto", description="Whether double quotes enclose fields; auto: in CSV yes, in TSV no."
    )
    max_chars: int = Field(
        MAX_CHARS, ge=1, description="A longer text is taken for a mistake and refused."
    )
    limit: int | None = Field(
        None, ge=1, description="Use only the first N training records: for a quick try."
    )


class TrackSection(Section):
    """Where the course of the training is kept besides the run folder."""

    mlflow: str | None = Field(
        None,
        min_length=1,
        description="An MLflow server (http://127.0.0.1:5000) or store (sqlite:///mlflow.db); "
        "null: none. Needs pretune[track].",
    )
    experiment: str = Field("pretune", min_length=1, description="MLflow's experiment.")
    name: str | None = Field(None, description="Of the run there. Default: the output folder.")

    @field_validator("mlflow")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        # The recipe is saved beside the result, logged and published.
        if uri is not None and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "leave user and password out; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return uri
