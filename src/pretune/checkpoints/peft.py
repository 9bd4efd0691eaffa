"""LoRA adapters in the layout of peft: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretune.checkpoints.config import read_object
from pretune.checkpoints.names import PublishedNames, name_table, rows_of_parts
from pretune.errors import CheckpointError
from pretune.models.backbone import backbone_of
from pretune.models.config import brief
from pretune.models.family import Family
from pretune.models.layers import Linear
from pretune.models.lora import LearnedRows, LoraLinear, adapters, learned_rows
from pretune.text.file_kinds import refuse_lfs_pointer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROWS = "token_adapter.trainable_tokens_delta"

#: peft's names for what a head is for; it has none for other heads.
TASK_TYPES = {
    "backbone": "FEATURE_EXTRACTION",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "token_classification_crf": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
    "causal_lm": "CAUSAL_LM",
    "actor_critic": "CAUSAL_LM",
    "translation": "SEQ_2_SEQ_LM",
}
#: Entries of `adapter_config.json` that say how a model computes in another way, and what it is.
_OTHER_WAYS = {
    "use_rslora": "a rank-stabilised LoRA",
    "use_dora": "a DoRA",
    "use_qalora": "a QA-LoRA",
    "use_bdlora": "a block-diagonal LoRA",
    "lora_bias": "a LoRA with biases of its own",
    "rank_pattern": "a LoRA with several ranks",
    "alpha_pattern": "a LoRA with several values of alpha",
    "layer_replication": "a LoRA that repeats layers",
    "target_parameters": "a LoRA of parameters instead of linear maps",
    "alora_invocation_tokens": "an activated LoRA",
    "megatron_config": "a LoRA for Megatron",
    "arrow_config": "an Arrow router of several LoRAs",
    "velora_config": "a VeLoRA",
    "monteclora_config": "a MonteCLoRA",
    "kasa_config": "a KaSA",
}
#: Values of `init_lora_weights` that leave the weights of the base as they are.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Entries that are about training, or that the names of the tensors tell better.
_HARMLESS = frozenset(
    (
        *(
            "alpha",
            "auto_mapping",
            "base_model_name_or_path",
            "corda_config",
            "ephemeral_gpu_offload",
        ),
        *("ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
        *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
        *("lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save"),
        *("peft_type", "peft_version", "qalora_group_size", "r", "revision", "runtime_config"),
        *("target_modules", "task_type", "trainable_token_indices", "init_lora_weights", "bias"),
    )
)

_Part = TypeVar("_Part", LoraLinear, LearnedRows)


def _table(model: nn.Module, family: Family, head: str) -> dict[str, PublishedNames]:
    """Our names to published ones; a head may give the backbone a prefix of its own."""
    table, own = name_table(family, head, backbone_of(model).stacks), family.heads[head].prefix
    if own is None:
        return table

    def renamed(names: PublishedNames) -> PublishedNames:
        return replace(names, parts=tuple(own + p.removeprefix(family.prefix) for p in names.parts))

    return {n: renamed(p) if n.startswith("backbone.") else p for n, p in table.items()}


def _matrices(
    model: nn.Module, table: Mapping[str, PublishedNames], ours: str, rows: int
) -> list[tuple[str, slice]]:
    """The published matrices that lie in one of ours: their names, and their rows in it."""
    names = table[f"{ours}.weight"]
    counts = rows_of_parts(model, f"{ours}.weight", rows, names)
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    slices = [slice(end - own, end) for end, own in zip(ends, counts, strict=True)]
    plain = [name.removesuffix(".weight") for name in names.parts]
    return [*zip(plain, slices, strict=True)]


def _pairs(
    model: nn.Module, table: Mapping[str, PublishedNames]
) -> Iterator[tuple[str, LoraLinear, Tensor, Tensor]]:
    """Each A and B of a model's adapters, with the published name of the matrix it is added to."""
    for ours, part in adapters(model).items():
        named = {rows.start: name for name, rows in _matrices(model, table, ours, len(part.base))}
        for block, (a, b) in zip(part.blocks, part.pairs(), strict=True):
            yield named[block.start], part, a, b


def _rows(
    model: nn.Module, table: Mapping[str, PublishedNames]
) -> Iterator[tuple[str, LearnedRows]]:
    """The tables with trained rows, by published names."""
    for ours, part in learned_rows(model).items():
        yield table[f"{ours}.weight"].parts[0].removesuffix(".weight"), part


def _whole(model: nn.Module, table: Mapping[str, PublishedNames]) -> dict[str, nn.Parameter]:
    """The parameters that are trained and saved whole, by published names."""
    return {
        table[ours].parts[0]: parameter
        for ours, parameter in model.named_parameters()
        if parameter.requires_grad and ours in table
    }


def save_adapter(model: nn.Module, folder: Path, family: Family, head: str, base: str) -> None:
    """Write the adapters that `add_lora` put into a model into a new folder, as peft does.

    What is trained as a whole is written with them (`modules_to_save`): a plain language model
    opens with the adapter of one that has a value as well and passes over it, one with the head
    takes it too.

    Args:
        model: with its head.
        folder: must not exist yet.
        family: of the model.
        head: the name of its head.
        base: the model that was adapted, for `base_model_name_or_path`.
    """
    table, tensors = _table(model, family, head), {}
    adapted: dict[str, LoraLinear] = {}
    for name, part, a, b in _pairs(model, table):
        adapted[name] = part
        for letter, value in (("A", a), ("B", b)):
            tensors[f"{_PREFIX}{name}.lora_{letter}.weight"] = value.detach().cpu().clone()
    new: list[int] = []
    for name, rows in _rows(model, table):
        tensors[f"{_PREFIX}{name}.{_ROWS}"] = rows.rows.detach().cpu().clone()
        new = list(rows.learned)
    whole = _whole(model, table)
    for name, value in whole.items():
        tensors[f"{_PREFIX}{name}"] = value.detach().cpu().clone()
    first = next(iter(adapted.values()))
    prefix = family.heads[head].prefix or family.prefix
    modules = {name.removeprefix(prefix).split(".")[0] for name in whole}
    config = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(head),
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _endings(adapted, table.values()),
        "fan_in_fan_out": any(rule.transposed for rule in family.rules),  # GPT-2's Conv1D
        "inference_mode": True,
        **({"trainable_token_indices": new} if new else {}),
        **({"modules_to_save": sorted(modules)} if whole else {}),
    }
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _endings(adapted: Iterable[str], table: Iterable[PublishedNames]) -> list[str]:
    """The shortest ends of names that pick just these modules, as peft's `target_modules` do.

    At least two words of a name: h.0.attn.c_proj -> attn.c_proj.
    """
    wanted = {*adapted}
    everything = {part.rpartition(".")[0] for names in table for part in names.parts}
    others = [f".{name}" for name in everything - wanted]
    endings = set()
    for name in wanted:
        words = name.split(".")
        ends = (".".join(words[-count:]) for count in range(min(2, len(words)), len(words) + 1))
        fitting = (e for e in ends if not any(other.endswith(f".{e}") for other in others))
        endings.add(next(fitting, name))
    return sorted(endings)


@torch.no_grad()
def fill_adapter(model: nn.Module, folder: Path, family: Family, head: str) -> None:
    """Load adapters that `save_adapter` or peft wrote into the adapters of a model.

    Raises:
        CheckpointError: rank, alpha, modules or new tokens differ.
    """
    config = read_object(folder / CONFIG)
    tensors, table = read_tensors(folder), _table(model, family, head)
    # Adapted matrices, of the same rank and alpha.
    for name, part, a, b in _pairs(model, table):
        if (config.get("r"), config.get("lora_alpha")) != (part.rank, part.alpha):
            raise CheckpointError(
                f"{folder}: r={config.get('r')}, lora_alpha={config.get('lora_alpha')}, but the "
                f"model's adapters have r={part.rank}, lora_alpha={part.alpha}",
                "Set train.lora.rank and train.lora.alpha to those.",
            )
        for letter, own in (("A", a), ("B", b)):
            _fill(own, tensors, f"{name}.lora_{letter}.weight", folder / WEIGHTS)
    # Embeddings of new tokens.
    for name, rows in _rows(model, table):
        if config.get("trainable_token_indices") != list(rows.learned):
            raise CheckpointError(
                f"{folder}: trainable_token_indices are {config.get('trainable_token_indices')}, "
                f"but the model's new tokens are {list(rows.learned)}",
                "Set model.new_tokens to the tokens it was trained with.",
            )
        _fill(rows.rows, tensors, f"{name}.{_ROWS}", folder / WEIGHTS)
    # What is trained as a whole.
    for name, value in _whole(model, table).items():
        _fill(value, tensors, name, folder / WEIGHTS)
    # `_fill` takes tensors out: what is left has no place.
    if tensors:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {next(iter(tensors))} has no place in the model",
            "It is of another model, or of other train.lora.targets.",
        )


def _fill(own: Tensor, tensors: dict[str, Tensor], name: str, path: Path) -> None:
    """Move a tensor of a file, which must exist with the right shape, into a parameter."""
    value = tensors.pop(name, None)
    if value is None or value.shape != own.shape:
        raise CheckpointError(
            f"{path}: no tensor of the right shape for {name}",
            "It is of another model, or of other train.lora.targets.",
        )
    own.copy_(value)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter by published names, without peft's prefix.

    Raises:
        CheckpointError: no such file, or it is damaged or a pickle; names it.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise CheckpointError(
            f"{path}: no such file" + (", but adapter_model.bin, a pickle" if pickled else ""),
            "Write it with peft: PeftModel.from_pretrained(MODEL, FOLDER).save_pretrained(NEW)."
            if pickled
            else "Copy the folder again, with all its files.",
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        refuse_lfs_pointer(path)
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({error})", "Copy the file again."
        ) from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path}: '{brief(name)}' holds values that are no finite numbers",
                "Copy the file again, or use an older one.",
            )
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class PublishedAdapter:
    """A LoRA adapter of anyone's, before it is put beside a model.

    Attributes:
        folder: where it lies.
        rank: of its matrices.
        alpha: of its matrices.
        task_type: peft's name of what it is for, or None.
        base: what it says that it was trained beside, or None.
        tensors: by published names, without peft's prefix.
    """

    folder: Path
    rank: int
    alpha: float
    task_type: str | None
    base: str | None
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> PublishedAdapter:
        """Read an adapter.

        Raises:
            CheckpointError: there is none, it is damaged, or of a kind that is not computed here.
        """
        path = folder / CONFIG
        if not path.is_file():
            raise CheckpointError(
                f"{folder}: no adapter here (no {CONFIG})",
                "Give the folder that peft or pretune wrote: RUN/best/adapter of a run with "
                "train.lora.",
            )
        config = read_object(path)
        _refuse_other_ways(config, path)
        rank: Any = config.get("r")
        alpha: Any = config.get("lora_alpha")
        numbers = type(rank) is int and type(alpha) in (int, float)
        if not numbers or rank < 1 or not alpha > 0:
            raise CheckpointError(
                f"{path}: r and lora_alpha must be numbers above 0, not {brief(rank)} and "
                f"{brief(alpha)}",
                "Copy the file again.",
            )
        kind, base = config.get("task_type"), config.get("base_model_name_or_path")
        return cls(
            folder,
            rank,
            alpha,
            kind if isinstance(kind, str) else None,
            base if isinstance(base, str) and base else None,
            read_tensors(folder),
        )

    @property
    def whole(self) -> dict[str, Tensor]:
        """The tensors that replace a parameter of the model, by published names."""
        return {name: t for name, t in self.tensors.items() if ".lora_" not in f".{name}"}


def _refuse_other_ways(config: Mapping[str, Any], path: Path) -> None:
    """Refuse an adapter that computes anything but W + alpha / rank * B A."""
    kind, way = config.get("peft_type"), None
    if kind != "LORA":
        way = f"peft's {brief(kind)}, no LoRA (peft_type)"
    for name, value in config.items():
        if way is None and value and name in _OTHER_WAYS:
            way = f"{_OTHER_WAYS[name]} ({name})"
        elif way is None and value and name not in _HARMLESS:
            way = f"of a kind that is not known here ({brief(name)})"
    if way is None and config.get("bias", "none") != "none":
        way = f"a LoRA with trained biases (bias: {brief(config['bias'])})"
    start = config.get("init_lora_weights")
    if way is None and start not in _PLAIN_STARTS:
        way = f"a LoRA that also changed its base (init_lora_weights: {brief(start)})"
    if way is None and config.get("trainable_token_indices"):
        way = "a LoRA with trained rows of the embeddings (trainable_token_indices)"
    if way is not None:
        raise CheckpointError(
            f"{path}: the adapter is {way}, which pretune does not put beside a model",
            "Merge it with peft: PeftModel.from_pretrained(MODEL, FOLDER).merge_and_unload()"
            ".save_pretrained(NEW). (An adapter that pretune wrote has the merged model in the "
            "folder above it.)",
        )


@torch.no_grad()
def put_beside(model: nn.Module, adapter: PublishedAdapter, family: Family, head: str) -> None:
    """Put an adapter into a model, in place; no tensor of the model itself is written to.

    Args:
        model: with its head; parts of it may be on the meta device if the adapter has them.
        adapter: made for such a model.
        family: of the model.
        head: the name of its head.

    Raises:
        CheckpointError: a tensor has no place in the model, or is of another shape; names it.
    """
    table, path = _table(model, family, head), adapter.folder / WEIGHTS
    left = dict(adapter.tensors)
    for ours, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, Linear)]:
        if f"{ours}.weight" not in table:
            continue
        chosen, pairs = [], []
        for name, block in _matrices(model, table, ours, linear.out_features):
            names = [f"{name}.lora_{letter}.weight" for letter in "AB"]
            if not left.keys() & {*names}:
                continue
            shapes = [(adapter.rank, linear.in_features), (block.stop - block.start, adapter.rank)]
            pairs.append([_taken(left, *item, path) for item in zip(names, shapes, strict=True)])
            chosen.append(block)
        if chosen:
            part = LoraLinear(linear, adapter.rank, adapter.alpha, chosen)
            part.lora_a = nn.Parameter(torch.cat([a for a, _ in pairs]))
            part.lora_b = nn.Parameter(torch.cat([b for _, b in pairs]))
            place, _, last = ours.rpartition(".")
            setattr(model.get_submodule(place), last, part)
    # What replaces a parameter as a whole: a parameter of its own, as others may share the old one.
    for ours, parameter in [*model.named_parameters()]:
        own = table.get(ours)
        if own is not None and len(own.parts) == 1 and own.parts[0] in left:
            lying = parameter.t() if own.transposed else parameter
            value = _taken(left, own.parts[0], tuple(lying.shape), path)
            place, _, last = ours.rpartition(".")
            whole = value.t().contiguous() if own.transposed else value
            setattr(model.get_submodule(place), last, nn.Parameter(whole))
    if left:
        raise CheckpointError(
            f"{path}: '{brief(min(left))}' has no place in a {family.model_type} model for "
            f"{head.replace('_', ' ')}",
            "The adapter is for another model, or for another task.",
        )


def _taken(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """Take a tensor out of a file's, in float32; it must be there in this shape."""
    value = tensors.pop(name, None)
    if value is None or tuple(value.shape) != shape:
        what = "is missing" if value is None else f"is {list(value.shape)}"
        raise CheckpointError(
            f"{path}: '{name}' {what}, but the model needs {list(shape)}",
            "The adapter is for another model.",
        )
    return value.float()
