"""A recipe: everything a training run depends on, as one small YAML file.

    task:
      name: classify
    model:
      from: minilm
    data:
      train: train.tsv
      validation: 0.1

Unknown keys are errors that name the nearest right one. What ran is saved beside the result with
every default written out, so that `pretune train runs/x/recipe.yaml` repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from pretune import yaml12
from pretune.data import MAX_CHARS, TABLE_SUFFIXES, read
from pretune.errors import RecipeError, did_you_mean
from pretune.recipe_errors import explain
from pretune.tasks import TaskOptions, task_class

Overrides = Sequence[str] | Mapping[str, Any]


class Section(BaseModel):
    """Unknown keys are refused, values are checked, nothing changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class ModelSection(Section):
    """Where the weights come from."""

    source: str = Field(
        "minilm",
        alias="from",
        description="A folder in the Hugging Face layout, a run folder, a Hub id, or minilm.",
    )
    tokenizer: str | None = Field(
        None, description="A folder with another tokenizer than the model's own."
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
        1, ge=1, description="Pad the vocabulary to a multiple of this (64 suits GPUs)."
    )


class DataSection(Section):
    """What is learned from."""

    train: str = Field(
        description="A .jsonl, .csv, .tsv or .parquet file, or a Hub dataset "
        "owner/name[:config]:split."
    )
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.1,
        description="A file or Hub dataset; or a share of the training data to hold back (0.1); "
        "or null.",
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


class TrainSection(Section):
    """How it is learned."""

    epochs: float = Field(3, gt=0, description="Passes over the training data.")
    max_steps: int | None = Field(
        None, ge=1, description="Stop after so many updates, whatever the epochs."
    )
    batch_size: int | None = Field(
        None, ge=1, description="Examples an update. Default: 32 where batch_tokens is not given."
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="Tokens an update, at most; instead of batch_size."
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Compute each batch in so many parts: the same update with less memory.",
    )
    learning_rate: float = Field(5e-5, gt=0, description="At its peak.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How it falls after the warm-up."
    )
    warmup: float | int = Field(
        0.1, ge=0, description="Updates until the peak; below 1: a share of all updates."
    )
    floor: float = Field(0.0, ge=0, le=1, description="Where it ends, as a share of the peak.")
    weight_decay: float = Field(0.01, ge=0, description="Of matrices; not of biases and LayerNorm.")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: memory of the gradient.")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW: memory of its square.")
    eps: float = Field(1e-8, gt=0, description="AdamW: added to the root.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each layer learns at this times the rate of the one above it."
    )
    freeze: Literal["none", "embeddings", "backbone"] | dict[Literal["layers"], int] | str = Field(
        "none",
        description="What does not learn: none, embeddings, backbone, {layers: N} (the embeddings "
        "and the first N layers), or a pattern of parameter names (backbone.layers.*.attention.*).",
    )
    clip: float | None = Field(
        1.0, gt=0, description="Longest gradient (Euclidean norm); null: no clipping."
    )
    eval_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        "epoch", description="Evaluate and save after each epoch, or every N updates."
    )
    eval_batch_tokens: int = Field(
        8192, ge=1, description="Tokens at a time in evaluation; changes memory and speed only."
    )
    best: str | None = Field(
        None, description="The metric that picks the best checkpoint. Default: the task's own."
    )
    log_every: int = Field(10, ge=1, description="Updates between two entries in the logs.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast on CUDA, float32 elsewhere."
    )

    @field_validator("warmup")
    @classmethod
    def _share_or_count(cls, warmup: float) -> float:
        if warmup > 1 and warmup != int(warmup):
            raise ValueError("below 1 it is a share, from 1 on a whole number of updates")
        return warmup

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if self.batch_size is not None and self.batch_tokens is not None:
            raise ValueError("give batch_size or batch_tokens, and set the other to null")
        if self.batch_size is None and self.batch_tokens is None:
            object.__setattr__(self, "batch_size", 32)  # frozen: this is still construction
        return self


def _task_options(value: Any) -> Any:
    """Validate the `task:` section by the options of the task it names."""
    if isinstance(value, str):  # `task: classify`
        value = {"name": value}
    if not isinstance(value, Mapping):
        return value
    if "name" not in value:
        raise RecipeError("task.name is missing", "Name the task, e.g. `name: classify`.")
    return task_class(value["name"]).options_type.model_validate(dict(value))


class Recipe(Section):
    """One training run, fully described."""

    description: str = Field("", description="One line for people.")
    task: Annotated[SerializeAsAny[TaskOptions], BeforeValidator(_task_options)]
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection
    train: TrainSection = Field(default_factory=TrainSection)
    output: str = Field(
        "runs/latest", min_length=1, description="The folder for everything that comes out."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of the data order, new weights and dropout.")

    @classmethod
    def load(cls, source: str | Path, overrides: Overrides = ()) -> Recipe:
        """Read a recipe and change some of its values.

        Args:
            source: the name of a built-in recipe, a YAML file, or a file of labelled data, for
                which sensible defaults are taken.
            overrides: `key.sub=value` texts (values are YAML), or a mapping of such keys.

        Raises:
            RecipeError: no such recipe, not YAML, an unknown key or a wrong value.
        """
        values, origin = _read_source(str(source))
        return cls.of(_override(values, overrides), origin)

    def changed(self, overrides: Overrides) -> Recipe:
        """This recipe with some values changed; see `load`."""
        return Recipe.of(_override(self.to_dict(), overrides)) if overrides else self

    @classmethod
    def of(cls, values: Mapping[str, Any], origin: str = "recipe") -> Recipe:
        """Check plain values and make a recipe of them.

        Raises:
            RecipeError: an unknown key or a wrong value; all of them are named.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise explain(error, cls, values, origin) from None
        except RecipeError as error:
            raise RecipeError(f"{origin}: {error.message}", error.hint) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    def to_yaml(self) -> str:
        """What `load` reads back as the same recipe."""
        return yaml12.dump(self.to_dict())


def builtin_recipes() -> dict[str, str]:
    """The built-in recipes' texts by name."""
    folder = resources.files("pretune") / "recipes"
    found = {
        entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    }
    return dict(sorted(found.items()))


def _read_source(source: str) -> tuple[dict[str, Any], str]:
    path = Path(source)
    built_in = builtin_recipes()
    if source in built_in:
        text, origin = built_in[source], f"built-in recipe {source}"
    elif path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return _for_data(source), f"defaults for {source}"
    elif path.is_file():
        try:
            text, origin = path.read_text(encoding="utf-8"), source
        except UnicodeDecodeError as error:
            raise RecipeError(
                f"{source}: not UTF-8 ({error.reason} at byte {error.start})"
            ) from None
    else:
        raise RecipeError(
            f"'{source}': no such recipe or file",
            f"{did_you_mean(source, built_in)} `pretune recipes` lists the built-in ones; a "
            "labelled file (.jsonl, .csv, .tsv, .parquet) works too.",
        )
    values = yaml12.parse(text, origin)
    if not isinstance(values, dict):
        raise RecipeError(
            f"{origin}: expected sections such as `task:` and `data:`",
            "`pretune init classify` writes a recipe to start from.",
        )
    return values, origin


def _for_data(source: str) -> dict[str, Any]:
    """The recipe of somebody who has only a labelled file: classify it with the embedded model."""
    pair = {"sentence1", "sentence2"} <= set(read(source).columns)
    return {
        "task": {"name": "classify", **({"pair": True} if pair else {})},
        "data": {"train": source},
        "output": f"runs/{Path(source).stem}",
    }


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            f"'{text}': not an override",
            "Write key=value, e.g. train.epochs=2 or model.from=minilm.",
        )
    return key.strip(), yaml12.parse(value, f"override '{text}'")


def _override(values: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    if isinstance(overrides, Mapping):
        pairs = [(str(key), value) for key, value in overrides.items()]
    else:
        pairs = [_parse_override(text) for text in overrides]
    for key, value in pairs:
        _set(values, key, value)
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for depth, name in enumerate(sections):
        inner = values.get(name)
        if inner is None:
            inner = values[name] = {}
        if not isinstance(inner, dict):
            above = ".".join(sections[: depth + 1])
            raise RecipeError(
                f"override '{key}': {above} is {inner!r}, which has no keys below it",
                f"Set {above} as a whole, e.g. {above}='{{...}}'.",
            )
        # A copy, because the values may be the caller's own.
        values[name] = dict(inner)
        values = values[name]
    values[last] = value
