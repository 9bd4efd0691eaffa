"""LoRA adapters in the layout of peft: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretune.checkpoints.config import read_object
from pretune.checkpoints.names import expand, name_table
from pretune.errors import CheckpointError
from pretune.models.family import Family
from pretune.models.lora import LearnedRows, LoraLinear, adapters, learned_rows

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROWS = "token_adapter.trainable_tokens_delta"


_Part = TypeVar("_Part", LoraLinear, LearnedRows)


def _named(
    model: nn.Module, family: Family, head: str, parts: dict[str, _Part]
) -> list[tuple[str, _Part]]:
    """Parts of a model under the published names that peft uses, instead of ours."""
    backbone = model.get_submodule("backbone")
    table = name_table(family, head, backbone.stacks)  # type: ignore[arg-type]
    named = []
    for ours, part in parts.items():
        theirs = table[f"{ours}.weight"].parts
        if len(theirs) != 1:
            raise CheckpointError(
                f"a published {family.model_type} has {len(theirs)} matrices for {ours}",
                "LoRA can be saved only for models such as GPT-2.",
            )
        named.append((theirs[0].removesuffix(".weight"), part))
    return named


def _whole(model: nn.Module, family: Family, head: str) -> dict[str, nn.Parameter]:
    """Parameters that the head adds, which are trained and saved whole, by published names."""
    table = expand(family.heads[head].rules, (1,))
    return {names.parts[0]: model.get_parameter(ours) for ours, names in table.items()}


def save_adapter(model: nn.Module, folder: Path, family: Family, head: str, base: str) -> None:
    """Write the adapters that `add_lora` put into a model into a new folder, as peft does.

    What the head adds is written with them (`modules_to_save`): a plain language model opens with
    the adapter and passes over it, one with the head takes it too. `base` is the model that was
    adapted, for `base_model_name_or_path`.
    """
    named = _named(model, family, head, adapters(model))
    first = named[0][1]
    tensors = {}
    for name, part in named:
        for letter, value in (("A", part.lora_a), ("B", part.lora_b)):
            tensors[f"{_PREFIX}{name}.lora_{letter}.weight"] = value.detach().cpu().contiguous()
    new: list[int] = []
    for name, rows in _named(model, family, head, learned_rows(model)):
        tensors[f"{_PREFIX}{name}.{_ROWS}"] = rows.rows.detach().cpu().contiguous()
        new = list(rows.learned)
    whole = _whole(model, family, head)
    for name, value in whole.items():
        tensors[f"{_PREFIX}{name}"] = value.detach().cpu().contiguous()
    # peft selects modules by the end of their names: h.0.attn.c_proj -> attn.c_proj.
    targets = sorted({".".join(name.split(".")[-2:]) for name, _ in named})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "fan_in_fan_out": any(rule.transposed for rule in family.rules),  # GPT-2's Conv1D
        "inference_mode": True,
        **({"trainable_token_indices": new} if new else {}),
        **({"modules_to_save": sorted({n.split(".")[0] for n in whole})} if whole else {}),
    }
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def fill_adapter(model: nn.Module, folder: Path, family: Family, head: str) -> None:
    """Load adapters that `save_adapter` or peft wrote into the adapters of a model.

    Raises:
        CheckpointError: rank, alpha, modules or new tokens differ.
    """
    config = read_object(folder / CONFIG)
    tensors = load_file(folder / WEIGHTS)
    # Adapted matrices, of the same rank and alpha.
    for name, part in _named(model, family, head, adapters(model)):
        if (config.get("r"), config.get("lora_alpha")) != (part.rank, part.alpha):
            raise CheckpointError(
                f"{folder}: r={config.get('r')}, lora_alpha={config.get('lora_alpha')}, but the "
                f"model's adapters have r={part.rank}, lora_alpha={part.alpha}",
                "Set train.lora.rank and train.lora.alpha to those.",
            )
        for letter, own in (("A", part.lora_a), ("B", part.lora_b)):
            _fill(own, tensors, f"{name}.lora_{letter}.weight", folder / WEIGHTS)
    # Embeddings of new tokens.
    for name, rows in _named(model, family, head, learned_rows(model)):
        if config.get("trainable_token_indices") != list(rows.learned):
            raise CheckpointError(
                f"{folder}: trainable_token_indices are {config.get('trainable_token_indices')}, "
                f"but the model's new tokens are {list(rows.learned)}",
                "Set model.new_tokens to the tokens it was trained with.",
            )
        _fill(rows.rows, tensors, f"{name}.{_ROWS}", folder / WEIGHTS)
    # What the head adds.
    for name, value in _whole(model, family, head).items():
        _fill(value, tensors, name, folder / WEIGHTS)
    # `_fill` takes tensors out: what is left has no place.
    if tensors:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {next(iter(tensors))} has no place in the model",
            "It is of another model, or of other train.lora.targets.",
        )


def _fill(own: Tensor, tensors: dict[str, Tensor], name: str, path: Path) -> None:
    """Move a tensor of a file, which must exist with the right shape, into a parameter."""
    value = tensors.pop(f"{_PREFIX}{name}", None)
    if value is None or value.shape != own.shape:
        raise CheckpointError(
            f"{path}: no tensor of the right shape for {name}",
            "It is of another model, or of other train.lora.targets.",
        )
    own.copy_(value)
