"""LoRA adapters in the layout of peft: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pretune.errors import CheckpointError
from pretune.hub.config import read_object
from pretune.hub.keys import Family, name_table
from pretune.models.lora import LoraLinear, adapters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def _names(model: nn.Module, family: Family, head: str) -> dict[str, tuple[str, LoraLinear]]:
    """Our name of each adapter -> peft's, and itself."""
    backbone = model.get_submodule("backbone")
    table = name_table(family, head, backbone.stacks)  # type: ignore[arg-type]
    found = {}
    for ours, part in adapters(model).items():
        theirs = table[f"{ours}.weight"].parts
        if len(theirs) != 1:
            raise CheckpointError(
                f"a {family.model_type} has {len(theirs)} matrices where one is here ({ours})",
                "LoRA is saved for models such as a GPT-2 only.",
            )
        found[ours] = theirs[0].removesuffix(".weight"), part
    return found


def save_adapter(model: nn.Module, folder: Path, family: Family, head: str, base: str) -> None:
    """Write what `add_lora` put into a model, as peft does.

    Args:
        model: with adapters.
        folder: is made.
        family: gives the published names.
        head: of the model.
        base: the model it is beside, for `base_model_name_or_path`.
    """
    named = _names(model, family, head)
    first = next(part for _, part in named.values())
    tensors = {}
    for name, part in named.values():
        for letter, value in (("A", part.lora_a), ("B", part.lora_b)):
            tensors[f"{_PREFIX}{name}.lora_{letter}.weight"] = value.detach().cpu().contiguous()
    # The end of a name that no other module's ends with: h.0.attn.c_proj -> attn.c_proj.
    targets = sorted({".".join(name.split(".")[-2:]) for name, _ in named.values()})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "fan_in_fan_out": family.model_type == "gpt2",  # whose Conv1D has its matrices transposed
        "inference_mode": True,
    }
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


@torch.no_grad()
def fill_adapter(model: nn.Module, folder: Path, family: Family, head: str) -> None:
    """Put what `save_adapter`, or peft, wrote into the adapters of a model.

    Raises:
        CheckpointError: it is of another rank, alpha or other modules.
    """
    config = read_object(folder / CONFIG)
    tensors = load_file(folder / WEIGHTS)
    for name, part in _names(model, family, head).values():
        if (config.get("r"), config.get("lora_alpha")) != (part.rank, part.alpha):
            raise CheckpointError(
                f"{folder}: r={config.get('r')}, lora_alpha={config.get('lora_alpha')}, but the "
                f"model's adapters have r={part.rank}, lora_alpha={part.alpha}",
                "Set train.lora.rank and train.lora.alpha to those.",
            )
        for letter, own in (("A", part.lora_a), ("B", part.lora_b)):
            value = tensors.pop(f"{_PREFIX}{name}.lora_{letter}.weight", None)
            if value is None or value.shape != own.shape:
                raise CheckpointError(
                    f"{folder / WEIGHTS}: nothing for {name} in the right shape",
                    "It is of another model, or of other train.lora.targets.",
                )
            own.copy_(value)
    if tensors:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {next(iter(tensors))} has no place in the model",
            "It is of another model, or of other train.lora.targets.",
        )
