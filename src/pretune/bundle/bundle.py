"""`Bundle`: a model with its tokenizer and its task, as one folder on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretune.bundle.fresh import known_entries, of_tokenizer, vocabulary_for, with_options
from pretune.bundle.loadable import (
    check_segments,
    check_sizes,
    head_names,
    refuse_damaged,
    refuse_headless,
)
from pretune.checkpoints.config import family_of, read_config, read_object
from pretune.checkpoints.load import LoadReport, load_into
from pretune.checkpoints.open import open_weights, tensorflow_names
from pretune.checkpoints.peft import save_adapter
from pretune.checkpoints.save import save_model
from pretune.checkpoints.source import find_source, find_tokenizer
from pretune.checkpoints.weights import WeightSource, named_dtype
from pretune.errors import CheckpointError, RecipeError
from pretune.models.backbone import Backbone
from pretune.models.config import ModelConfig, brief
from pretune.models.families import preset, preset_names
from pretune.models.family import Family
from pretune.models.lora import adapters
from pretune.models.resize import resize_vocabulary
from pretune.tasks.base import AnyTask, Calibrated, UsesTokenizer
from pretune.tasks.builtin import TASKS, published_task, saved_task_class
from pretune.tokenizers.added_tokens import add_tokens
from pretune.tokenizers.tokenizer import Tokenizer

#: Our own file beside transformers' ones: the task, its options, and what it learned from the data.
TASK_FILE = "pretune.json"
#: Where the adapter is, in peft's layout, of a model that was trained by LoRA.
ADAPTER = "adapter"


@dataclass
class Bundle:
    """What `load` gives.

    Attributes:
        model: the backbone, or the backbone with the task's head.
        tokenizer: of the model.
        family: how the published layout names its parts.
        task: what it was trained for, or None for a bare backbone.
        columns: the column names its training data had, by the task's names.
        report: what loading found and did not find.
    """

    model: nn.Module
    tokenizer: Tokenizer
    family: Family
    task: AnyTask | None
    columns: dict[str, str] = field(default_factory=dict)
    report: LoadReport | None = None

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        backbone = self.model if self.task is None else self.model.get_submodule("backbone")
        assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
        return backbone


def load(
    source: str | Path,
    *,
    task: AnyTask | None = None,
    bare: bool = False,
    options: Mapping[str, Any] | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    config: Mapping[str, Any] | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    dtype: str = "float32",
    mmap: bool = True,
    allow_pickle: bool = False,
) -> Bundle:
    """Load a model with its tokenizer.

    Args:
        source: a run of ours, a folder in the Hugging Face layout, Google's TensorFlow release of a
            BERT, `minilm`, a Hub id (`owner/name[@revision]`), or the name of a size, such as
            `bert-base`, for random weights.
        task: load for this task: where the checkpoint has no such head (or one for other labels),
            it gets a fresh one. Default: the task the checkpoint was trained for.
        bare: load the backbone alone, whatever the checkpoint was trained for.
        options: other values of options of the task it was trained for, e.g. `{"beams": 1}`.
        tokenizer: another one than the source's, or where it is (see `find_tokenizer`).
        config: entries of `config.json` that shall differ; for random weights only.
        dropout: of the hidden layers; default: as the checkpoint says.
        attention_dropout: of the attention weights; default: as the checkpoint says.
        dtype: `float32`, `float16` or `bfloat16`: what the model shall be in; `auto`: what the file
            has (of several, the narrowest that loses nothing). To be trained, a model is in
            float32.
        mmap: weights that need no change stay where they are: in the file, of which the model is a
            private window (it writes to copies of the pages). Quick, but a file that is cut short
            or copied over in the meantime ends the process; False copies them.
        allow_pickle: also read `pytorch_model.bin`, by torch's restricted unpickler.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind.
    """
    kind = named_dtype(dtype)
    folder, place = _place_of(source, allow_pickle=allow_pickle)
    weights = None
    if folder is not None:
        refuse_damaged(folder)
        weights = open_weights(folder, allow_pickle=allow_pickle, mapped=mmap)
    said = _config_of(source, folder, weights)
    family = family_of(said, place)
    config_class = family.backbone.config_class
    found = tokenizer
    if not isinstance(found, Tokenizer):
        found = find_tokenizer(found or folder or vocabulary_for(family, str(source)))
    changed = config_class.dropout_entries(dropout, attention_dropout)
    if folder is None:
        said = {**said, **of_tokenizer(found, config_class), **known_entries(config, config_class)}
    elif config:
        raise CheckpointError(
            f"{place}: has weights, so its sizes are what they are (model.config)",
            f"For random weights of any size, name one to start from: {', '.join(preset_names())}.",
        )
    model_config = config_class.from_dict({**said, **changed})
    # Of a family, transformers may know only the usual models.
    family = family_of(model_config.to_dict(), place)
    trained, columns = (None, {}) if folder is None else _trained_task(folder, said, model_config)
    if trained is not None and options:
        trained = with_options(trained, options)
    wanted = None if bare else task or trained
    names = set() if wanted is None else head_names(family, wanted)
    check_sizes(place, model_config, found, wanted)
    build = partial(_build, family, model_config, wanted)
    if folder is None or weights is None:
        model = build().to(kind or torch.float32)
        report = LoadReport(f"random weights of the size {source}", 0, random=True)
    else:
        head = "backbone" if wanted is None else wanted.head
        same = trained is not None and wanted is not None and _same_head(trained, wanted)
        if same and trained and wanted and trained is not wanted and isinstance(wanted, Calibrated):
            wanted.restore_calibration(trained.state())
        fresh = set() if same else names
        # A task with more heads than the checkpoint has (next sentences, say) gets those anew.
        promised = names & head_names(family, trained) if same and trained else set()
        model, report = load_into(build, weights, folder, family, head, fresh=fresh, dtype=kind)
        refuse_headless(folder, family, head, promised & set(report.missing))
    if wanted is not None and isinstance(wanted, UsesTokenizer):
        wanted.bind(found)
    check_segments(place, model_config, found, wanted)
    return Bundle(model, found, family, wanted, columns, report)


def _build(family: Family, config: ModelConfig, task: AnyTask | None) -> nn.Module:
    backbone = family.build(config)
    if task is None:
        return backbone
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    head_names(family, task)
    return task.build(backbone)


def _place_of(source: str | Path, *, allow_pickle: bool = False) -> tuple[Path | None, Path]:
    """The folder of a source (None for a size), and what to call it in errors."""
    if preset(str(source)) is not None:
        return None, Path(source)
    folder = find_source(source, allow_pickle=allow_pickle)
    return folder, folder


def _config_of(
    source: str | Path, folder: Path | None, weights: WeightSource | None = None
) -> dict[str, Any]:
    """What config.json says, or would say of a size."""
    if folder is None:
        return preset(str(source)) or {}
    return read_config(folder, lambda: weights.names if weights else tensorflow_names(folder))


@dataclass(frozen=True)
class Outline:
    """A model without its weights.

    Attributes:
        name: its folder, or the name of its size.
        folder: where it is; None where only a size was named.
        family: how the published layout names its parts.
        model: the backbone, or the backbone with the task's head, on the meta device.
        task: what it was trained for, or None for a bare backbone.
    """

    name: str
    folder: Path | None
    family: Family
    model: nn.Module
    task: AnyTask | None


def outline(source: str | Path) -> Outline:
    """What `load` would load, by `config.json` alone: quick, and in no memory.

    Args:
        source: as for `load`.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind.
    """
    folder, place = _place_of(source)
    config = _config_of(source, folder)
    family = family_of(config, place)
    sizes = family.backbone.config_class.from_dict(config)
    task = None if folder is None else _trained_task(folder, config, sizes)[0]
    with torch.device("meta"):
        model = _build(family, sizes, task)
    return Outline(str(place), folder, family, model, task)


def _same_head(trained: AnyTask, wanted: AnyTask) -> bool:
    """Whether the checkpoint's head answers the very question that is asked."""
    return type(trained) is type(wanted) and trained.output_meaning() == wanted.output_meaning()


def _trained_task(
    folder: Path, config: Mapping[str, Any], sizes: ModelConfig
) -> tuple[AnyTask | None, dict[str, str]]:
    path = folder / TASK_FILE
    if not path.is_file():
        # GPT-2 has another name for it.
        positions = {"max_position_embeddings": sizes.size("max_position_embeddings")}
        return published_task({**config, **positions}), {}
    saved = read_object(path)
    try:
        kind = saved_task_class(saved["options"]["name"], saved.get("package"))
        task = kind(kind.options_type.model_validate(saved["options"])).with_state(saved["state"])
        columns = dict(saved.get("columns", {}))
        if not all(isinstance(name, str) for name in columns.values()):
            raise TypeError("columns are names")
    except (RecipeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not readable ({type(error).__name__}: {brief(error)})",
            "It was written by another version, or damaged: train again, or copy it again.",
        ) from None
    return task, columns


def grow_vocabulary(bundle: Bundle, tokens: Sequence[str], multiple: int = 1) -> int:
    """Teach a model new tokens: tokenizer, embeddings and output layer together, in place.

    Args:
        bundle: to change.
        tokens: as they occur in text; those already known are passed over.
        multiple: pad the embeddings to a multiple of this.

    Returns:
        how many tokens were new.

    Raises:
        DataError: a token is empty.
    """
    added = add_tokens(bundle.tokenizer, tokens)
    rows = max(bundle.tokenizer.vocab_size, bundle.backbone.config.size("vocab_size"))
    resize_vocabulary(bundle.model, -(-rows // multiple) * multiple)
    return added


def save_tokenizer(tokenizer: Tokenizer, family: Family, folder: Path) -> None:
    """Write a model's tokenizer so that transformers gives the model what it reads."""
    if not any(rule.ours == "embeddings.segments.weight" for rule in family.rules):
        # Else a BERT tokenizer hands out segments, and transformers' GPT-2 adds the embeddings of
        # the tokens of those numbers to all others.
        read = {"model_input_names": ["input_ids", "attention_mask"]}
        tokenizer.settings = {**tokenizer.settings, **read}
    tokenizer.save(folder)


def _padding(bundle: Bundle) -> dict[str, int]:
    """`pad_token_id`, by which transformers finds the last token of each text in a padded batch.

    Here nothing is padded, so any token does that no text ends with: what ends texts for a language
    model, which a classifier does not append.
    """
    tokenizer = bundle.tokenizer
    number: int | None = getattr(bundle.backbone.config, "pad_token_id", None)
    for name in ("pad_token", "eos_token", "bos_token"):
        number = tokenizer.special_id(name) if number is None else number
    if number is None or not 0 <= number < tokenizer.vocab_size:
        return {}
    tokenizer.special.setdefault("pad_token", tokenizer.tokens([number])[0])
    return {"pad_token_id": number}


def save(bundle: Bundle, folder: Path) -> None:
    """Write model, tokenizer and task into an existing folder; transformers opens it too."""
    task = bundle.task
    head = "backbone" if task is None else task.head
    extra = {} if task is None else task.config_entries()
    if head == "sequence_classification" and bundle.backbone.causal:
        extra |= _padding(bundle)
    save_model(bundle.model, folder, bundle.family, head, extra)
    if adapters(bundle.model):
        base = "" if bundle.report is None else bundle.report.source
        save_adapter(bundle.model, folder / ADAPTER, bundle.family, head, str(base))
    save_tokenizer(bundle.tokenizer, bundle.family, folder)
    if task is not None:
        saved = {
            "options": task.options.model_dump(mode="json"),
            "state": task.state(),
            "columns": bundle.columns,
        }
        if (package := TASKS.package_of(task.name)) is not None:
            saved["package"] = package
        files = {TASK_FILE: saved, "generation_config.json": task.generation_entries()}
        for name, values in files.items():
            if values:
                text = json.dumps(values, ensure_ascii=False, indent=2)
                (folder / name).write_text(text + "\n", encoding="utf-8")
