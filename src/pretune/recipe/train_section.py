"""The `train:` section of a recipe: how something is learned."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pretune.recipe.sections import Section

#: Of what the guard remembers or counts.
MOST = 10**6


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):  # to Python they are 0 and 1
        raise ValueError("should be a number, not true or false")
    return value


#: Updates: a whole number, or below 1 a share of all updates of the run.
Updates = Annotated[float | int, BeforeValidator(_no_truth)]


def _share_or_count(value: Updates) -> Updates:
    if value > 1 and value != int(value):
        raise ValueError("below 1 it is a share, from 1 on a whole number of updates")
    return value


class GuardSection(Section):
    """What happens when the numbers go wrong: `train.guard`, also as one word."""

    action: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="stop: end the run and say which batch and module; skip: pass over the batch; "
        "rollback: back to the last good checkpoint, then pass over the data that did it.",
    )
    spikes: bool | None = Field(
        None,
        description="Whether a loss far above the recent ones is trouble too, besides NaN and "
        "infinity. Default: not with stop.",
    )
    window: int = Field(
        64, ge=8, le=MOST, description="How many recent losses a spike is measured against."
    )
    threshold: float = Field(
        10.0,
        gt=0,
        description="A spike is so many standard deviations (estimated by the median absolute "
        "deviation) above the median.",
    )
    patience: int = Field(
        1,
        ge=1,
        le=MOST,
        description="How many spikes in a row make trouble; single ones may be noise.",
    )
    margin: int = Field(
        2,
        ge=0,
        le=MOST,
        description="rollback: so many batches before the trouble are passed over too.",
    )
    give_up: int = Field(5, ge=1, description="After so many rescues the run ends with a report.")

    @property
    def watches_spikes(self) -> bool:
        """`spikes`, with its default."""
        return self.action != "stop" if self.spikes is None else self.spikes


class LoraSection(Section):
    """Small matrices beside those of the model, which alone learn (Hu et al. 2021)."""

    rank: int = Field(8, ge=1, description="Of what is added to a matrix.")
    alpha: float = Field(16, gt=0, description="It counts alpha / rank times.")
    targets: list[
        Literal["attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down"]
    ] = Field(
        ["attention.qkv"], min_length=1, description="To which matrices of each layer it is added."
    )


class BatchRamp(Section):
    """A batch that grows: small early batches learn more from each token."""

    start: int = Field(
        ge=1, description="The first batch, in batch_size's (or batch_tokens') unit."
    )
    updates: Updates = Field(
        0.1, gt=0, description="Updates until the batch is whole; below 1: a share of all."
    )

    _check = field_validator("updates")(_share_or_count)


def _guard(value: Any) -> Any:
    return {"action": value} if isinstance(value, str) else value


class TrainSection(Section):
    """How it is learned."""

    epochs: float = Field(3, gt=0, le=10**9, description="Passes over the training data.")
    max_steps: int | None = Field(
        None, ge=1, description="Stop after so many updates, whatever the epochs."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Examples an update. Default: 32 where batch_tokens is not given."
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="Tokens an update, at most; instead of batch_size."
    )
    batch_ramp: BatchRamp | None = Field(
        None, description="{start: N, updates: M}: the batch grows from N over M updates."
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Compute each batch in so many parts: the same update with less memory.",
    )
    learning_rate: float = Field(5e-5, gt=0, description="At its peak.")
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
    floor: float = Field(0.0, ge=0, le=1, description="Where it ends, as a share of the peak.")
    weight_decay: float = Field(0.01, ge=0, description="Of matrices; not of biases and LayerNorm.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: memory of the gradient.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: memory of its square.")
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
    freeze: Literal["none", "embeddings", "backbone"] | dict[Literal["layers"], int] | str = Field(
        "none",
        description="What does not learn: none, embeddings, backbone, {layers: N} (the embeddings "
        "and the first N layers), or a pattern of parameter names (backbone.layers.*.attention.*).",
    )
    lora: LoraSection | None = Field(
        None,
        description="Learn small matrices beside those of the model, e.g. {rank: 8, alpha: 16, "
        "targets: [attention.qkv]}; for causal_lm, chat and instruct.",
    )
    clip: float | None = Field(
        1.0, gt=0, description="Longest gradient (Euclidean norm); null: no clipping."
    )
    guard: Annotated[GuardSection, BeforeValidator(_guard)] = Field(
        default_factory=GuardSection,
        description="stop, skip or rollback, or a section: what to do about NaN and loss spikes.",
    )
    eval_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        "epoch", description="Evaluate and save after each epoch, or every N updates."
    )
    save_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Also save every N updates. Default: at each evaluation only."
    )
    keep: int = Field(
        1, ge=1, description="How many of the newest checkpoints to keep, besides the best."
    )
    background_save: bool | None = Field(
        None, description="Write checkpoints beside the training. Default: large models and CUDA."
    )
    eval_batch_tokens: int = Field(
        8192, ge=1, description="Tokens at a time in evaluation; changes memory and speed only."
    )
    best: str | None = Field(
        None, description="The metric that picks the best checkpoint. Default: the task's own."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop early after so many evaluations without a better one."
    )
    log_every: int = Field(10, ge=1, description="Updates between two entries in the logs.")
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
        description="Under torchrun: each process holds all of the model (ddp) or a share (fsdp).",
    )
    activation_checkpointing: bool = Field(
        False, description="Compute each layer twice instead of keeping its inner results."
    )
    compile: bool = Field(False, description="torch.compile the layers (CUDA only).")

    _checks = field_validator("warmup", "decay")(_share_or_count)

    @field_validator("freeze")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        if value == {}:
            raise ValueError("should say how many layers: {layers: N}")
        return value

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError("give batch_size or batch_tokens, and set the other to null")
        if self.batch_size is None and self.batch_tokens is None:
            object.__setattr__(self, "batch_size", 32)  # frozen: this is still construction
        full = self.batch_size or self.batch_tokens or 0
        if self.batch_ramp is not None and self.batch_ramp.start > full:
            raise ValueError(f"batch_ramp.start is above the whole batch, {full}")
        return self
