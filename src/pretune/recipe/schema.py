"""The sections of a recipe: what is trained, on what and how. `Recipe` puts them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pretune.data.records import MAX_CHARS
from pretune.errors import WrongValueError
from pretune.storage.object_store import is_url
from pretune.tasks.checked_numbers import CheckedNumbers

#: The upper limit of what the guard remembers or counts.
GUARD_LIMIT = 10**6


class RecipeSection(CheckedNumbers):
    """Refuses unknown keys, checks all values, and never changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


# Where the weights come from


class TokenizerSection(RecipeSection):
    """A tokenizer to train on the training data before the model, as `pretune tokenizer` does."""

    kind: Literal["wordpiece", "bpe", "unigram", "char"] = Field(
        "bpe",
        description="wordpiece (BERT), bpe (GPT-2, on bytes), unigram (SentencePiece) or char.",
    )
    vocab_size: int | None = Field(
        None,
        ge=1,
        le=10**7,
        description="The largest number of entries. Default: 30522 for wordpiece, 50257 for bpe, "
        "32000 for unigram, all characters for char.",
    )
    joint: bool = Field(
        True,
        description="For translation: one vocabulary for both sides; false: one for each, of "
        "vocab_size entries each.",
    )


class ModelSection(RecipeSection):
    """Where the weights come from."""

    left_out: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    source: str = Field(
        "minilm",
        alias="from",
        description="A folder in the Hugging Face layout, a run folder, a GGUF file, a Hub id, "
        "minilm or smollm2.",
    )
    layers: Literal["every-other"] | list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="The layers of the checkpoint that the model keeps, counted from 0, e.g. "
        "[0, 2, 4], or every-other: a smaller model that starts from a larger one. Default: all.",
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
    embeddings: Literal["neighbours"] | None = Field(
        None,
        description="For random weights: neighbours: the token embeddings start from which tokens "
        "stand near which in data.train, which spares pre-training its first updates.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="In the hidden layers. Default: the model's own."
    )
    attention_dropout: float | None = Field(
        None, ge=0, lt=1, description="On the attention weights. Default: the model's own."
    )
    new_tokens: list[str] = Field(
        default_factory=list,
        description="Words to add to the vocabulary, each as one token; their embeddings start at "
        "the mean of the others.",
    )
    vocab_multiple: int = Field(
        1, ge=1, le=10**6, description="Pad the vocabulary to a multiple of this (64 suits GPUs)."
    )
    allow_pickle: bool = Field(
        False,
        description="Also read pytorch_model.bin, by torch's restricted unpickler. Only from "
        "people you trust.",
    )


class TeacherSection(RecipeSection):
    """A trained model, or several, that the model learns from (knowledge distillation)."""

    source: list[Annotated[str, Field(min_length=1)]] = Field(
        alias="from",
        min_length=1,
        description="A run, a folder or a Hub id; a list: the mean of several teachers.",
    )
    temperature: float = Field(
        2.0, gt=0, description="Divides the logits of teacher and student: above 1 is softer."
    )
    soft: float = Field(
        0.5, ge=0, description="Weight of the KL from the teacher's probabilities, times T^2."
    )
    labels: float = Field(0.5, ge=0, description="Weight of the task's own loss.")
    hidden: float = Field(
        0.0,
        ge=0,
        description="Weight of 1 - cos between the last hidden states (DistilBERT), for a student "
        "of the teacher's width.",
    )
    relations: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL between the last layers' attention and relations of values "
        "(MiniLM), for a student of any width with as many heads.",
    )
    top_k: int | None = Field(
        64,
        ge=1,
        description="Tokens of a vocabulary that keep a probability of their own, the rest "
        "together; null: all.",
    )
    keep: bool | None = Field(
        None,
        description="Whether the teacher is run once, before training, and its outputs are kept "
        "in the run folder; false: for each batch. Default: kept where batches stay the same and "
        "only outputs are learned.",
    )

    @field_validator("source", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if not (self.soft or self.hidden or self.relations):
            raise WrongValueError(
                "nothing is learned from it: soft, hidden or relations must be above 0"
            )
        if self.keep and (self.hidden or self.relations):
            raise WrongValueError("keep is for outputs; hidden and relations are of each batch")
        return self


def teacher_section(value: Any) -> Any:
    """Take a name, or a list of names, for a section with only these."""
    return {"from": value} if isinstance(value, str | list) else value


#: The name of a column in the data, or its number.
ColumnName = Annotated[str, BeforeValidator(lambda v: str(v) if type(v) is int else v)]


class FoldSection(RecipeSection):
    """Which part of the training data is validated on; `pretune train --folds` sets it."""

    number: int = Field(ge=1, description="The number of the part, from 1.")
    of: int = Field(ge=2, le=10**6, description="Into how many parts the data are split.")
    group: str | None = Field(
        None,
        min_length=1,
        description="A column of the data: records with the same value there are in one part.",
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.number > self.of:
            raise WrongValueError(f"there is no part {self.number} of {self.of}")
        return self


class DataSection(RecipeSection):
    """What is learned from."""

    left_out: ClassVar[frozenset[str]] = frozenset({"fold"})

    train: str = Field(
        description="A .jsonl, .csv, .tsv, .parquet or .txt file, a folder of .txt files, a Hub "
        "dataset owner/name[:config]:split, or a folder that `pretune prepare` made. Blank lines "
        "separate the documents of a .txt file; for causal_lm the whole file is one text. "
        "Data from a program's memory are named by their number and a digest."
    )
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.1, description="The same; or a share of the training data to hold back (0.1); or null."
    )
    stratify: bool = Field(
        True,
        description="Hold back each label in proportion (classify, multilabel), and never the last "
        "record that has it; false: records at random.",
    )
    fold: FoldSection | None = Field(
        None,
        description="Cross-validation: validate on part N of M of data.train, and train on the "
        "others, {number: N, of: M, group: COLUMN}. Needs data.validation: null. `pretune train "
        "--folds M` makes all of them.",
    )
    columns: dict[str, ColumnName] = Field(
        default_factory=dict,
        description="What the data calls the task's columns, e.g. {text: body, label: intent}; "
        "numbers where no line names them, e.g. {text: 1, label: -1}.",
    )
    encoding: str = Field("utf-8", description="Encoding of text files, e.g. gb18030.")
    quoting: Literal["auto", "standard", "none"] = Field(
        "auto", description="Whether double quotes enclose fields; auto: in CSV yes, in TSV no."
    )
    max_chars: int = Field(
        MAX_CHARS, ge=1, description="A longer text is taken for a mistake and refused."
    )
    limit: int | None = Field(
        None, ge=1, description="Use only the first N training records: for a quick try."
    )
    errors: Literal["stop", "skip"] = Field(
        "stop",
        description="What to do about records that cannot be used, such as those without a label. "
        "stop: list them, and train nothing; skip: leave them out, and count them.",
    )

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _names_data(cls, value: Any) -> Any:
        if not isinstance(value, str | int | float | None):
            raise WrongValueError(
                "should name data; a table in memory is given beside the recipe, "
                "pretune.train(RECIPE, data=TABLE)"
            )
        return value

    @model_validator(mode="after")
    def _validated_once(self) -> Self:
        if self.fold is not None and self.validation is not None:
            raise WrongValueError(
                "fold says what is validated on: set validation to null (data.validation=null)"
            )
        return self


class TrackSection(RecipeSection):
    """Where the figures of the training go in addition to the run folder."""

    mlflow: str | None = Field(
        None,
        min_length=1,
        description="An MLflow server (http://127.0.0.1:5000) or store (sqlite:///mlflow.db); "
        "null: none. Needs pretune[track].",
    )
    experiment: str = Field("pretune", min_length=1, description="Name of the MLflow experiment.")
    name: str | None = Field(
        None, description="Name of the run in MLflow. Default: the output folder."
    )

    @field_validator("mlflow")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        # The recipe is saved beside the result, logged and published.
        if uri is not None and "@" in urlsplit(uri).netloc:
            raise WrongValueError(
                "leave user and password out; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment"
            )
        return uri


# How it is trained


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):  # to Python these are 0 and 1
        raise WrongValueError("should be a number, not true or false")
    return value


def _share_or_count(value: Updates) -> Updates:
    if value > 1 and value != int(value):
        raise WrongValueError("below 1 it is a share, from 1 on a whole number of updates")
    return value


#: A number of updates: a whole number, or below 1 a share of all updates of the run.
Updates = Annotated[float | int, BeforeValidator(_not_bool)]


class GuardSection(RecipeSection):
    """What to do when the numbers go wrong: `train.guard`, also as one word."""

    action: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="stop: end the run and say which batch and module; skip: pass over the batch; "
        "rollback: back to the last good checkpoint, then pass over the data that did it.",
    )
    spikes: bool | None = Field(
        None,
        description="Whether a loss far above the recent ones is trouble too, not only NaN and "
        "infinity. Default: not with stop.",
    )
    window: int = Field(
        64,
        ge=8,
        le=GUARD_LIMIT,
        description="The number of recent losses that a spike is measured against.",
    )
    threshold: float = Field(
        10.0,
        gt=0,
        description="A spike is this many standard deviations (estimated by the median absolute "
        "deviation) above the median.",
    )
    patience: int = Field(
        1,
        ge=1,
        le=GUARD_LIMIT,
        description="How many spikes in a row make trouble; single ones may be noise.",
    )
    margin: int = Field(
        2,
        ge=0,
        le=GUARD_LIMIT,
        description="rollback: pass over this many batches before the trouble too.",
    )
    give_up: int = Field(
        5, ge=1, description="After this many recoveries the run ends with a report."
    )

    @property
    def watches_spikes(self) -> bool:
        """`spikes`, or its default."""
        return self.action != "stop" if self.spikes is None else self.spikes


class LoraSection(RecipeSection):
    """Low-rank matrices that are trained beside the model's frozen ones (Hu et al. 2021)."""

    rank: int = Field(8, ge=1, description="Rank of what is added to a matrix.")
    alpha: float = Field(16, gt=0, description="What is added is scaled by alpha / rank.")
    targets: list[
        Literal[
            "attention.qkv",
            "attention.output",
            "feed_forward.up",
            "feed_forward.down",
            "cross.query",
            "cross.kv",
            "cross.output",
        ]
    ] = Field(
        ["attention.qkv"],
        min_length=1,
        description="The matrices of each layer that are adapted; feed_forward.up with its gate.",
    )


class BatchRamp(RecipeSection):
    """A batch that grows: small early batches learn more from each token."""

    start: int = Field(
        ge=1, description="The first batch, in batch_size's (or batch_tokens') unit."
    )
    updates: Updates = Field(
        0.1, gt=0, description="Updates until the batch is full; below 1: a share of all."
    )

    _check = field_validator("updates")(_share_or_count)


_LIMIT_FORMS = "should be a number, or {above: X}, or {below: X}"


class Limit(RecipeSection):
    """The range that a figure must stay in."""

    above: float | None = Field(None, description="End when it is above this.")
    below: float | None = Field(None, description="End when it is below this.")

    @model_validator(mode="after")
    def _limits(self) -> Self:
        if self.above is None and self.below is None:
            raise WrongValueError(_LIMIT_FORMS)
        return self

    def passed(self, value: float) -> str | None:
        """Say which limit a value is beyond: `above 10`; None if it is in the range, or NaN."""
        if self.above is not None and value > self.above:
            return f"above {self.above:g}"
        if self.below is not None and value < self.below:
            return f"below {self.below:g}"
        return None


def _limit(value: Any) -> Any:
    if value is None:  # YAML takes {kl:3} for a key without a value
        raise WrongValueError(f"{_LIMIT_FORMS}, with a space after every colon: {{kl: 3}}")
    if not isinstance(_not_bool(value), int | float | Mapping | Limit):
        raise WrongValueError(_LIMIT_FORMS)
    return {"above": value} if isinstance(value, int | float) else value


def _guard(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


class TrainSection(RecipeSection):
    """How the model is trained."""

    left_out: ClassVar[frozenset[str]] = frozenset({"callbacks", "mirror"})

    # How much, in which batches.
    epochs: float = Field(3, gt=0, le=10**9, description="Passes over the training data.")
    max_steps: int | None = Field(
        None,
        ge=0,
        description="Stop after this many updates, whatever the epochs; 0: only evaluate and save.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Examples per update. Default: 32 where batch_tokens is not given."
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="Tokens per update, at most; instead of batch_size."
    )
    batch_ramp: BatchRamp | None = Field(
        None, description="{start: N, updates: M}: the batch grows from N over M updates."
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Compute each batch in this many parts: the same update with less memory.",
    )
    # The learning rate and AdamW.
    learning_rate: float = Field(5e-5, gt=0, description="The peak learning rate.")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt", "wsd"] = Field(
        "linear",
        description="How it falls after the warm-up; inverse_sqrt: Noam's; wsd: stays, then falls "
        "in the last `decay` updates.",
    )
    warmup: Updates = Field(
        0.1, ge=0, description="Updates until the peak; below 1: a share of all updates."
    )
    decay: Updates = Field(
        0.1, gt=0, description="wsd: updates of the fall; below 1: a share of all updates."
    )
    floor: float = Field(
        0.0, ge=0, le=1, description="Where the rate ends, as a share of the peak."
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Weight decay of matrices; biases and LayerNorm have none."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: memory of the gradient.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: memory of the squared gradient.")
    eps: float = Field(1e-8, gt=0, description="AdamW: added to the root.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each layer learns at this times the rate of the one above it."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Evaluate and save a moving average of the weights with this memory (0.999).",
    )
    # Which weights.
    freeze: Literal["none", "embeddings", "backbone"] | dict[Literal["layers"], int] | str = Field(
        "none",
        description="What does not learn: none, embeddings, backbone, {layers: N} (the embeddings "
        "and the first N layers), or a pattern of parameter names (backbone.layers.*.attention.*).",
    )
    lora: LoraSection | None = Field(
        None,
        description="Learn small matrices beside those of the model, e.g. {rank: 8, alpha: 16, "
        "targets: [attention.qkv]}; heads learn as a whole.",
    )
    # What keeps it stable.
    clip: float | None = Field(
        1.0, gt=0, description="Longest gradient (Euclidean norm); null: no clipping."
    )
    guard: Annotated[GuardSection, BeforeValidator(_guard)] = Field(
        default_factory=GuardSection,
        description="stop, skip or rollback, or a section: what to do about NaN and loss spikes.",
    )
    # When it is evaluated, saved and logged.
    eval_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        "epoch", description="Evaluate and save after each epoch, or every N updates."
    )
    eval_at_start: bool = Field(
        False, description="Also evaluate and save before the first update: what training adds to."
    )
    save_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Also save every N updates. Default: at each evaluation only."
    )
    keep: int = Field(
        1, ge=1, description="How many of the newest checkpoints to keep, in addition to the best."
    )
    background_save: bool | None = Field(
        None,
        description="Write checkpoints while training goes on. Default: large models and CUDA.",
    )
    mirror: str | None = Field(
        None,
        description="A place in object storage (s3://bucket/runs/films) that gets a copy of the "
        "run after each checkpoint; --resume auto goes on from there on another machine.",
    )
    eval_batch_tokens: int = Field(
        8192, ge=1, description="Tokens at a time in evaluation; changes memory and speed only."
    )
    best: str | None = Field(
        None, description="The metric that picks the best checkpoint. Default: the task's own."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop early after this many evaluations without a better one."
    )
    stop_on: dict[str, Annotated[Limit, BeforeValidator(_limit)]] = Field(
        default_factory=dict,
        description="End the run when a figure goes above a limit, {kl: 10}, or below one, "
        "{reward: {below: 0}}. Figures of evaluations; of ppo, grpo and rloo also of each update.",
    )
    log_every: int = Field(10, ge=1, description="Updates between two entries in the logs.")
    callbacks: list[str] = Field(
        [],
        description="Callbacks to call between updates, by the names that your own file (pretune "
        "--plugin FILE.py) or an installed package gives them.",
    )
    # How it is computed.
    workers: int = Field(0, ge=0, le=64, description="Threads that make batches ahead of time.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="auto: bf16 autocast on CUDA, float32 elsewhere. bf16 also pays on a CPU with "
        "AVX512-BF16 or AMX.",
    )
    deterministic: bool = Field(
        False, description="Refuse operations whose result may differ from run to run (CUDA)."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="Under torchrun: each process holds all of the model (ddp) or a shard (fsdp).",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute each layer twice instead of keeping its inner results."
    )
    compile: bool = Field(False, description="torch.compile the layers (CUDA only).")

    _checks = field_validator("warmup", "decay")(_share_or_count)

    @field_validator("mirror")
    @classmethod
    def _in_storage(cls, place: str | None) -> str | None:
        if place is not None and not is_url(place):
            raise WrongValueError(
                "should be a place in object storage, such as s3://bucket/runs/films; the folder "
                "of the run is `output`"
            )
        return place

    @field_validator("freeze")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        if value == {}:
            raise WrongValueError("should say how many layers: {layers: N}")
        return value

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise WrongValueError(
                "give batch_size or batch_tokens, not both: add train.batch_tokens=null, or "
                "train.batch_size=null"
            )
        if self.batch_size is None and self.batch_tokens is None:
            object.__setattr__(self, "batch_size", 32)  # frozen: this is still construction
        full = self.batch_size or self.batch_tokens or 0
        if self.batch_ramp is not None and self.batch_ramp.start > full:
            raise WrongValueError(f"batch_ramp.start is above the full batch, {full}")
        return self
