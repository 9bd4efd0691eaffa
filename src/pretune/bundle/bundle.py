"""`Bundle`: a model with its tokenizer and its task, as one folder on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pretune.bundle.companion import add_companion, save_companion
from pretune.bundle.loadable import (
    check_segments,
    check_sizes,
    check_tokenizer,
    head_names,
    note_gate,
    refuse_damaged,
    refuse_headless,
)
from pretune.bundle.task_file import TASK_FILE, task_entries, trained_task, with_options
from pretune.checkpoints.config import config_file, family_of, read_config, sizes_of
from pretune.checkpoints.load import LoadReport, fit_weights, load_into, settled
from pretune.checkpoints.open import has_readable_names, open_weights, tensorflow_names
from pretune.checkpoints.save import save_config, save_model
from pretune.checkpoints.sentence_transformers import copy_settings
from pretune.checkpoints.source import find_source, find_tokenizer
from pretune.checkpoints.weights import WeightSource, named_dtype
from pretune.errors import CheckpointError, did_you_mean
from pretune.models.backbone import Backbone, backbone_of
from pretune.models.config import ModelConfig
from pretune.models.families import preset, preset_names
from pretune.models.family import Family
from pretune.models.heads.replaced import companion_of
from pretune.models.lora import adapters
from pretune.models.packed import is_int8
from pretune.models.pruned import keep_layers, remove_heads
from pretune.models.resize import resize_vocabulary
from pretune.tasks.base import AnyTask, Calibrated, UsesTokenizer
from pretune.text.terminal import in_line
from pretune.tokenizers.added_tokens import add_tokens
from pretune.tokenizers.classes import INPUTS
from pretune.tokenizers.tokenizer import Tokenizer

#: The folder of the adapter, in peft's layout, of a model that was trained by LoRA.
ADAPTER = "adapter"


@dataclass(repr=False)
class Bundle:
    """A model that can be used: with its tokenizer, and with its task if it has one.

    Attributes:
        model: the backbone, or the backbone with the task's head.
        tokenizer: of the model.
        family: of the model.
        task: what the model was trained for; None for a bare backbone.
        columns: the data's names of the task's columns.
        report: which weights were loaded and which are new.
        folder: where it was loaded from; None for random weights.
    """

    model: nn.Module
    tokenizer: Tokenizer
    family: Family
    task: AnyTask | None
    columns: dict[str, str] = field(default_factory=dict)
    report: LoadReport | None = None
    folder: Path | None = None

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        backbone = self.model if self.task is None else self.model.get_submodule("backbone")
        assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
        return backbone

    def facts(self) -> dict[str, Any]:
        """Tell in a few words what it is: family, task, size, labels, place."""
        weights = [*self.model.parameters()]
        labels = [] if self.task is None else self.task.output_meaning().get("labels") or []
        return {
            "family": self.family.model_type,
            "task": None if self.task is None else self.task.name,
            "parameters": sum(weight.numel() for weight in weights),
            "dtype": str(weights[0].dtype).removeprefix("torch.") if weights else None,
            "device": str(weights[0].device) if weights else None,
            "vocabulary": self.tokenizer.vocab_size,
            "labels": list(labels),
            "folder": None if self.folder is None else str(self.folder),
        }

    def __repr__(self) -> str:
        facts = self.facts()
        job = "no task" if self.task is None else f"task {self.task.name}"
        count = len(facts["labels"])
        labels = f", {count} labels" if count else ""
        size = f"{facts['parameters']:,} parameters in {facts['dtype']} on {facts['device']}"
        place = "random weights" if self.folder is None else in_line(self.folder)
        return f"<{type(self).__name__} {place}: {facts['family']}, {job}{labels}, {size}>"


def load(
    source: str | Path,
    *,
    task: AnyTask | None = None,
    bare: bool = False,
    options: Mapping[str, Any] | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    config: Mapping[str, Any] | None = None,
    layers: Literal["every-other"] | Sequence[int] | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    dtype: str = "float32",
    mmap: bool = True,
    allow_pickle: bool = False,
    hollow: bool = False,
) -> Bundle:
    """Load a model with its tokenizer; the model is in evaluation mode, as it answers.

    Args:
        source: the folder of a run, a folder in the Hugging Face layout, Google's TensorFlow
            release of a BERT, a GGUF file, `minilm`, `smollm2`, a Hub id (`owner/name[@revision]`),
            or the name of a size, such as `bert-base`, for random weights.
        task: the task to load for. Where the checkpoint has no head for it, or one for other
            labels, the head is new. Default: the task that the checkpoint was trained for.
        bare: load the backbone alone, whatever the checkpoint was trained for.
        options: changed options of the task the checkpoint was trained for, e.g. `{"beams": 1}`.
        tokenizer: another tokenizer than the source's, or where to find it (see `find_tokenizer`).
        config: entries of `config.json` to change; for random weights only.
        layers: which layers of a checkpoint to keep, counted from 0; default: all.
        dropout: of the hidden layers; default: as the checkpoint says.
        attention_dropout: of the attention weights; default: as the checkpoint says.
        dtype: the type of the model: `float32` (which training needs), `float16` or `bfloat16`;
            `auto`: the file's own, and the narrowest that loses nothing if it has several.
        mmap: map weights that need no conversion into memory as private copy-on-write pages instead
            of reading them. Fast, but the process ends if the file is truncated or overwritten
            meanwhile.
        allow_pickle: also read `pytorch_model.bin`, by torch's restricted unpickler.
        hollow: leave the model on the meta device: it has sizes and no values, and takes no memory.
            The second model of a task that trains two has values even so.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind.
    """
    # Where the model comes from; a tokenizer decides the vocabulary of random weights.
    weights_dtype = named_dtype(dtype)
    origin = _Origin.open(source, mapped=mmap, allow_pickle=allow_pickle)
    if not isinstance(tokenizer, Tokenizer):
        place = tokenizer or origin.folder or _default_tokenizer(origin.family, str(source))
        tokenizer = find_tokenizer(place)
    sizes = origin.sizes(tokenizer, config, dropout, attention_dropout)
    # A variant of the family may have other names for its parts (see `Family.variant`).
    family = family_of(sizes.to_dict(), origin.name)

    # The task: the one asked for, else the one that the checkpoint was trained for.
    trained, columns = origin.trained_task(sizes)
    if trained is not None and options:
        trained = with_options(trained, options)
    wanted = None if bare else task or trained
    if wanted is not None:
        head_names(family, wanted)
    check_tokenizer(origin.name, family, tokenizer)
    check_sizes(origin.name, sizes, tokenizer, wanted)

    # The weights; and those of the second model of a task that trains two.
    fill = origin.hollow if hollow else origin.filled
    model, report = fill(source, family, sizes, trained, wanted, weights_dtype)
    if wanted is not None:
        kept = origin.folder if trained is not None and trained.name == wanted.name else None
        how: dict[str, Any] = {"allow_pickle": allow_pickle, "mapped": mmap}
        how |= {"dtype": weights_dtype, "anew": task is not None}
        add_companion(model, wanted, family, kept, **how)

    if layers is not None:
        if origin.folder is None:
            raise CheckpointError(
                f"{source}: model.layers picks layers of a trained model, and these are new",
                "Leave it out (model.layers=null); model.config gives random weights any number of "
                "layers.",
            )
        _pick_layers(backbone_of(model), layers)

    # The tokenizer is complete only now: a task may add a template, or a token between two texts.
    if wanted is not None and isinstance(wanted, UsesTokenizer):
        wanted.bind(tokenizer)
    check_segments(origin.name, sizes, tokenizer, wanted)
    if origin.folder is not None and is_int8(model):
        note_gate(origin.folder, origin.entries)
    # Without dropout: a training turns it on by itself.
    return Bundle(model.eval(), tokenizer, family, wanted, columns, report, origin.folder)


@dataclass(frozen=True)
class _Origin:
    """Where a model comes from."""

    name: Path  # its folder, or the name of its size; for errors
    folder: Path | None  # None for a size
    weights: WeightSource | None  # None for a size, and where only an outline is wanted
    entries: dict[str, Any]  # the contents of `config.json`
    family: Family  # as the entries name it

    @property
    def place(self) -> object:
        """What the entries come from, for errors."""
        return "model.config" if self.folder is None else config_file(self.folder)

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        mapped: bool = True,
        allow_pickle: bool = False,
        with_weights: bool = True,
    ) -> _Origin:
        """Find a source, check that it is undamaged, and read its `config.json`."""
        # A published size names no folder; its weights will be random.
        entries = preset(str(source))
        if entries is not None:
            return cls(Path(source), None, None, entries, family_of(entries, Path(source)))
        # A checkpoint: undamaged, and opened only where its weights are wanted.
        folder, weights = find_source(source, allow_pickle=allow_pickle), None
        if with_weights:
            refuse_damaged(folder)
            weights = open_weights(folder, allow_pickle=allow_pickle, mapped=mapped)
        # Google's files do not say which head there is: the names of the tensors do.
        names = partial(tensorflow_names, folder) if weights is None else lambda: weights.names
        entries = read_config(folder, names)
        if weights is not None:
            entries = settled(entries, folder, weights)
        return cls(folder, folder, weights, entries, family_of(entries, folder))

    def sizes(
        self,
        tokenizer: Tokenizer,
        changes: Mapping[str, Any] | None,
        dropout: float | None,
        attention_dropout: float | None,
    ) -> ModelConfig:
        """Return the model's configuration, with some entries changed."""
        config_class = self.family.backbone.config_class
        entries, names = dict(self.entries), [item.name for item in fields(config_class)]
        # Random weights can have any size, and the vocabulary of any tokenizer.
        if self.folder is None:
            for name in changes or {}:
                if name not in names:
                    raise CheckpointError(
                        f"model.config: no entry is called '{name}'", did_you_mean(name, names)
                    )
            # A family takes the entries that its configuration has.
            given = _tokenizer_entries(tokenizer, decodes="decoder_start_token_id" in names)
            if config_class.counts_from_pad:
                given["pad_token_id"] = _padding_number(tokenizer)
            entries |= {name: value for name, value in given.items() if name in names}
            entries |= changes or {}
        elif changes:
            raise CheckpointError(
                f"{self.name}: the weights of a checkpoint fix its sizes (model.config)",
                "For random weights of any size, start from the name of one: "
                f"{', '.join(preset_names())}.",
            )
        entries |= config_class.dropout_entries(dropout, attention_dropout)
        sizes = sizes_of(self.family, entries, self.place)
        for name, value in (changes or {}).items():
            if isinstance(value, bool) and getattr(sizes, name) is not value:
                raise CheckpointError(
                    f"model.config: a {self.family.model_type} model has no '{name}'",
                    "Leave it out.",
                )
        return sizes

    def filled(
        self,
        source: str | Path,
        family: Family,
        sizes: ModelConfig,
        trained: AnyTask | None,
        wanted: AnyTask | None,
        dtype: torch.dtype | None,
    ) -> tuple[nn.Module, LoadReport]:
        """Build the model with random weights in the size asked for, or those of the checkpoint."""
        if self.folder is None or self.weights is None:
            model = _build(family, sizes, wanted).to(dtype or torch.float32)
            remove_heads(backbone_of(model), sizes.removed_heads)
            return model, LoadReport(f"random weights of the size {source}", 0, random=True)
        build = partial(_build, family, sizes, wanted)
        head = "backbone" if wanted is None else wanted.head
        fresh, promised = _head_parts(family, trained, wanted)
        model, report = load_into(
            build, self.weights, self.folder, family, head, fresh=fresh, dtype=dtype
        )
        refuse_headless(self.folder, family, head, promised & set(report.missing))
        return model, report

    def hollow(
        self,
        source: str | Path,
        family: Family,
        sizes: ModelConfig,
        trained: AnyTask | None,
        wanted: AnyTask | None,
        dtype: torch.dtype | None,
    ) -> tuple[nn.Module, LoadReport]:
        """Build what `filled` would, on the meta device; weights are compared by their headers."""
        with torch.device("meta"):
            model = _build(family, sizes, wanted).to(dtype or torch.float32)
        missing: tuple[str, ...] = ()
        if self.folder is not None and self.weights is not None:
            head = "backbone" if wanted is None else wanted.head
            fresh, _ = _head_parts(family, trained, wanted)
            fit = fit_weights(model, self.weights, self.folder, family, head, fresh=fresh)
            missing = fit.missing
        remove_heads(backbone_of(model), sizes.removed_heads)
        return model, LoadReport(f"{source}", 0, missing, random=self.folder is None)

    def trained_task(self, sizes: ModelConfig) -> tuple[AnyTask | None, dict[str, str]]:
        """Return the task of a checkpoint, and the data's names of its columns."""
        return (None, {}) if self.folder is None else trained_task(self.folder, self.entries, sizes)


def _tokenizer_entries(tokenizer: Tokenizer, decodes: bool) -> dict[str, Any]:
    """Return what `config.json` says of the tokenizer; a model may decode another text."""
    size, end = tokenizer.vocab_size, tokenizer.special_id("eos_token")
    if not decodes:
        return {"vocab_size": size, "bos_token_id": end, "eos_token_id": end}
    # A target begins with the padding token, as in Marian, or with the end where there is none.
    writer = tokenizer.written
    end, pad = writer.end_id, writer.special_id("pad_token")
    if end is None or tokenizer.end_id is None:
        raise CheckpointError(
            "the tokenizer has no token for the end of a text",
            "Use one with an eos_token or a sep_token; wordpiece and bpe have them "
            "(model.train_tokenizer.kind).",
        )
    begin = end if pad is None else pad
    entries: dict[str, Any] = {
        "vocab_size": size,
        "bos_token_id": None,
        "eos_token_id": end,
        "forced_eos_token_id": end,
        "pad_token_id": begin,
        "decoder_start_token_id": begin,
    }
    if tokenizer.two_vocabularies:
        # transformers wants the padding token to be in both tables.
        entries["vocab_size"] = max(size, writer.vocab_size)
        entries["decoder_vocab_size"] = writer.vocab_size
        entries["share_encoder_decoder_embeddings"] = False
    return entries


def _padding_number(tokenizer: Tokenizer) -> int:
    """Return the number of the padding token, from which a model's positions count."""
    number = tokenizer.special_id("pad_token")
    if number is None:
        raise CheckpointError(
            "the tokenizer has no padding token, and this model's positions count from its number",
            "Use one with a pad_token; wordpiece has one (model.train_tokenizer.kind).",
        )
    return number


def _default_tokenizer(family: Family, size: str) -> Path:
    if family.tokenizer is None:
        raise CheckpointError(
            f"{size}: random weights need a tokenizer",
            "Name a folder that has one (model.tokenizer=FOLDER), or have one trained on the data: "
            "model.train_tokenizer='{kind: bpe, vocab_size: 8000}'",
        )
    return find_source(family.tokenizer)


def _head_parts(
    family: Family, trained: AnyTask | None, wanted: AnyTask | None
) -> tuple[set[str], set[str]]:
    """Return the parts of the head to initialise, and those that the file must have.

    The trained head is kept only if its outputs mean what the wanted task's do; then the wanted
    task also takes over what was chosen on validation data.
    """
    names = set() if wanted is None else head_names(family, wanted)
    if wanted is not None:
        names -= {family.heads[wanted.head].output}
    if trained is None or wanted is None or trained.name != wanted.name:
        return names, set()
    if trained.output_meaning() != wanted.output_meaning():
        return names, set()
    if trained is not wanted and isinstance(wanted, Calibrated):
        wanted.restore_calibration(trained.state())
    # The wanted task may have one more head than the checkpoint, e.g. for next sentences.
    return set(), names & head_names(family, trained)


def _build(family: Family, sizes: ModelConfig, task: AnyTask | None) -> nn.Module:
    backbone = family.build(sizes)
    if task is None:
        return backbone
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    head_names(family, task)
    return task.build(backbone)


@dataclass(frozen=True)
class Outline:
    """A model without its weights."""

    name: str  # its folder, or the name of its size
    folder: Path | None  # None where only a size was named
    family: Family
    model: nn.Module  # the backbone, or the backbone with the task's head, on the meta device
    task: AnyTask | None  # what the model was trained for; None for a bare backbone


def outline(source: str | Path) -> Outline:
    """Build what `load` would load, without weights: quick, and without using memory.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind.
    """
    origin = _Origin.open(source, with_weights=False)
    sizes = sizes_of(origin.family, origin.entries, origin.place)
    task, _ = origin.trained_task(sizes)
    with torch.device("meta"):
        model = _build(origin.family, sizes, task)
    # The file may hold another model than config.json describes.
    if origin.folder is not None and has_readable_names(origin.folder):
        head = "backbone" if task is None else task.head
        fit_weights(model, open_weights(origin.folder), origin.folder, origin.family, head)
    remove_heads(backbone_of(model), sizes.removed_heads)
    return Outline(str(origin.name), origin.folder, origin.family, model, task)


def _pick_layers(backbone: Backbone, layers: Literal["every-other"] | Sequence[int]) -> None:
    """Remove all layers of a model but some, in place, as a student begins (Sanh et al. 2019).

    Args:
        backbone: a Transformer of one stack.
        layers: the numbers of those to keep, from 0, or `every-other`: 0, 2, 4, ...

    Raises:
        CheckpointError: the model has no such layer, or two stacks.
    """
    count = len(backbone.layers)
    chosen = range(0, count, 2) if layers == "every-other" else [*map(int, layers)]
    if not chosen or any(number >= count for number in chosen) or [*chosen] != sorted({*chosen}):
        shown = ", ".join(map(str, chosen))
        raise CheckpointError(
            f"model.layers: [{shown}] of a model with the layers 0 to {count - 1}",
            "Name each layer to keep once, in their order, e.g. model.layers=[0, 2, 4].",
        )
    try:
        keep_layers(backbone, chosen)
    except CheckpointError as error:
        raise CheckpointError(f"model.layers: {error.message}", error.hint) from None


def grow_vocabulary(bundle: Bundle, tokens: Sequence[str], multiple: int = 1) -> int:
    """Add tokens to a model in place: to its tokenizer, its embeddings and its output layer.

    Tokens are given as they occur in text, and known ones are skipped; the embeddings are padded to
    a multiple of `multiple`. Returns the number of new tokens.

    Raises:
        DataError: a token is empty.
    """
    # A model may already have more rows than the tokenizer has tokens.
    added = add_tokens(bundle.tokenizer, tokens)
    rows = max(bundle.tokenizer.vocab_size, bundle.backbone.config.size("vocab_size"))
    resize_vocabulary(bundle.model, -(-rows // multiple) * multiple)
    return added


def save(bundle: Bundle, folder: Path, int8: Mapping[str, Any] | None = None) -> None:
    """Write model, tokenizer and task into an existing folder; transformers can open it.

    With `int8`, which is as for `save_model`, only pretune can.
    """
    head, entries = _described(bundle)
    save_model(bundle.model, folder, bundle.family, head, entries, int8)
    # A second model, which transformers opens as well. One in 8 bits answers, and trains no more.
    companion = companion_of(bundle.model)
    if companion is not None and bundle.task is not None and int8 is None:
        place = save_companion(companion, bundle.task, bundle.family, folder)
        if place is not None:
            save_tokenizer(bundle.tokenizer, bundle.family, place)
    # The weights above have the adapter merged in; beside them, the adapter alone.
    if adapters(bundle.model):
        base = "" if bundle.report is None else bundle.report.source
        from pretune.checkpoints.peft import save_adapter

        save_adapter(bundle.model, folder / ADAPTER, bundle.family, head, str(base))
        if bundle.task is not None:
            _write_json(folder / ADAPTER / TASK_FILE, task_entries(bundle.task, bundle.columns))
    _save_beside(bundle, folder)


def save_without_weights(bundle: Bundle, folder: Path) -> None:
    """Write what `save` writes, but no weights: for a folder that has them in another format."""
    head, entries = _described(bundle)
    save_config(bundle.model, folder, bundle.family, head, entries)
    _save_beside(bundle, folder)


def _described(bundle: Bundle) -> tuple[str, dict[str, Any]]:
    """Return the name of the model's head, and what the task adds to `config.json`."""
    task = bundle.task
    head = "backbone" if task is None else task.head
    entries = {} if task is None else task.config_entries()
    if head == "sequence_classification" and bundle.backbone.causal:
        entries |= _padding_entries(bundle, task.last_tokens() if task else frozenset())
    return head, entries


def _save_beside(bundle: Bundle, folder: Path) -> None:
    """Write the files that lie beside the weights and `config.json`: tokenizer and task."""
    task = bundle.task
    save_tokenizer(bundle.tokenizer, bundle.family, folder)
    # A bare model is what it was loaded as, also for sentence-transformers.
    if task is None and bundle.folder is not None:
        copy_settings(bundle.folder, folder)
    if task is not None:
        files = {
            TASK_FILE: task_entries(task, bundle.columns),
            "generation_config.json": task.generation_entries(),
        }
        for name, values in files.items():
            if values:
                _write_json(folder / name, values)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: Tokenizer, family: Family, folder: Path) -> None:
    """Write a model's tokenizer so that transformers gives the model the same inputs."""
    if not any(rule.ours == "embeddings.segments.weight" for rule in family.rules):
        # Otherwise a BERT tokenizer returns segments, and transformers' GPT-2 would use them as
        # token ids and add their embeddings to all others.
        tokenizer.settings = {**tokenizer.settings, INPUTS: ["input_ids", "attention_mask"]}
    elif tokenizer.tells_segments:
        # A task may have made it tell them: what was published about its inputs no longer counts.
        tokenizer.settings.pop(INPUTS, None)
    tokenizer.save(folder)


def _padding_entries(bundle: Bundle, last: frozenset[int]) -> dict[str, int]:
    """Return `pad_token_id`, by which transformers finds the last token of each padded text.

    pretune pads nothing, so any token will do that never ends a text: the one that ends texts for
    a language model, which a classifier does not append, or where it does (`last`) any other.
    """
    tokenizer = bundle.tokenizer
    named = (tokenizer.special_id(name) for name in ("pad_token", "eos_token", "bos_token"))
    numbers = [getattr(bundle.backbone.config, "pad_token_id", None), *named]
    if last:
        numbers += range(len(last) + 1)
    fitting = (n for n in numbers if n is not None and n not in last)
    number = next((n for n in fitting if 0 <= n < tokenizer.vocab_size), None)
    if number is None:
        return {}
    # The tokenizer that is saved beside the model must name the same token.
    if last or "pad_token" not in tokenizer.special:
        tokenizer.special["pad_token"] = tokenizer.tokens([number])[0]
    return {"pad_token_id": number}
