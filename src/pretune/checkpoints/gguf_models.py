"""What the models in GGUF files are in the Hugging Face layout: their `config.json`, their names.

llama.cpp has names of its own for entries and tensors, and stores some matrices in another order
(convert_hf_to_gguf.py). What it writes for a model that is computed in another way than pretune
computes it is refused by name: left out in silence, it would change every answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import pi
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from pretune.checkpoints.gguf import GgufFile, GgufTensor
from pretune.checkpoints.weights import StoredTensor, WeightSource, copy_checked
from pretune.errors import CheckpointError
from pretune.models.config import brief
from pretune.text.terminal import in_line

#: Names in the Hugging Face layout by llama.cpp's. `{i}` stands for the number of a layer; each
#: name covers a weight and a bias.
_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
_QWEN3_NAMES = {
    **_LLAMA_NAMES,
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
    "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
    "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
}
#: The matrices that GPT-2's published files store as `[in, out]`.
_CONV1D = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
#: Factors by which Llama 3.1 stretches each frequency of its positions.
_FREQUENCIES = "rope_freqs.weight"

#: Entries that change what is computed, where they are anything but these values.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.softcapping": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "logit_scale": (1.0,),
}
_OTHER_SOURCE = "Get the model with config.json and model.safetensors."


@dataclass(frozen=True)
class _Architecture:
    """A family of llama.cpp's.

    Attributes:
        names: of its tensors, as `_LLAMA_NAMES`.
        config: `(entries of the file, the file)` to the entries of `config.json`.
        permuted: whether rows of queries and keys lie in the order of the first Llama's rotation.
    """

    names: Mapping[str, str]
    config: Callable[[_Entries, GgufFile], dict[str, Any]]
    permuted: bool = False


class _Entries:
    """The entries of a file that describe its model; errors name the file and the entry."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file, self._prefix = file, f"{architecture}."

    def number(self, name: str, kind: type = int, default: Any = None) -> Any:
        """A number; without a default it must be there."""
        key = self._prefix + name
        value = self._file.entries.get(key, default)
        kinds = (int, float) if kind is float else (int,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            what = "is missing" if value is None else f"is {brief(repr(value))}, not a number"
            raise CheckpointError(f"{self._file.path}: {key} {what}", "Copy the file again.")
        return value

    def text(self, name: str, default: str) -> str:
        """A text."""
        value = self._file.entries.get(self._prefix + name, default)
        return value if isinstance(value, str) else brief(repr(value))

    def has(self, name: str) -> bool:
        """Whether there is an entry of this name."""
        return self._prefix + name in self._file.entries

    def refuse(self, name: str, why: str) -> CheckpointError:
        """The error for an entry whose model pretune would compute wrongly."""
        value = brief(repr(self._file.entries.get(self._prefix + name)))
        return CheckpointError(
            f"{self._file.path}: {self._prefix}{name} is {value}: {why}", _OTHER_SOURCE
        )

    def refuse_variants(self) -> None:
        """Refuse values that stand for another computation."""
        for name, harmless in _HARMLESS.items():
            if self.has(name) and self._file.entries[self._prefix + name] not in harmless:
                raise self.refuse(name, "pretune does not compute such a model from a GGUF file")


def _llama(entries: _Entries, file: GgufFile) -> dict[str, Any]:
    hidden, heads = entries.number("embedding_length"), entries.number("attention.head_count")
    if not hidden or not heads:
        raise entries.refuse("attention.head_count", "no model has such sizes")
    size = entries.number("attention.key_length", default=hidden // heads)
    turned = entries.number("rope.dimension_count", default=size)
    if turned != size:
        raise entries.refuse("rope.dimension_count", f"only a part of the {size} numbers of a head")
    if entries.number("attention.value_length", default=size) != size:
        raise entries.refuse("attention.value_length", f"keys have {size}")
    config = {
        "hidden_size": hidden,
        "num_hidden_layers": entries.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entries.number("attention.head_count_kv", default=heads),
        "head_dim": size,
        "intermediate_size": entries.number("feed_forward_length"),
        "max_position_embeddings": entries.number("context_length"),
        "rms_norm_eps": _shortest(entries.number("attention.layer_norm_rms_epsilon", float)),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "rope_theta": _shortest(entries.number("rope.freq_base", float, 10_000.0)),
    }
    scaling = _scaling(entries, file, config)
    return config if scaling is None else {**config, "rope_scaling": scaling}


def _scaling(entries: _Entries, file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How positions are stretched, as `rope_scaling` of `config.json` has it; None: not at all."""
    kind = entries.text("rope.scaling.type", "none")
    factor = entries.number("rope.scaling.factor", float, 1.0)
    if entries.has("rope.scale_linear"):  # its older name
        kind, factor = "linear", entries.number("rope.scale_linear", float)
    if _FREQUENCIES in file.tensors:
        if kind != "none":
            raise entries.refuse("rope.scaling.type", f"and {_FREQUENCIES} stretches them too")
        return _llama3_scaling(file, config)
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    usual = ("type", "factor", "original_context_length", "finetuned")
    names = (key.partition(".rope.scaling.")[2] for key in file.entries)
    others = [name for name in names if name and name not in usual]
    if kind != "yarn" or others:
        why = f"with {', '.join(map(in_line, others))}" if others else "this kind is not read"
        raise entries.refuse("rope.scaling.type", f"{why} from a GGUF file")
    original = entries.number("rope.scaling.original_context_length")
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }


def _llama3_scaling(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of Llama 3.1's scaling, of which a GGUF file has only the result.

    Published models differ in the largest factor alone. It is taken from the file, and all others
    have to follow from it.
    """
    stored = file.tensors[_FREQUENCIES]
    factors = torch.empty(stored.shape, dtype=torch.float64)
    file.read(stored, factors)
    settings = {
        "rope_type": "llama3",
        "factor": _shortest(float(factors.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    size = config["head_dim"]
    # "llama3" of transformers' modeling_rope_utils: long waves are divided by the factor, short
    # ones stay as they are, and between the two it changes evenly.
    powers = torch.arange(0, size, 2, dtype=torch.float64) / max(size, 1)
    turns = 8192 / (2 * pi * float(config["rope_theta"]) ** powers)
    part = ((turns - 1) / 3).clamp(0, 1)
    expected = 1 / ((1 - part) / settings["factor"] + part)
    if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-4):
        raise CheckpointError(
            f"{file.path}: '{_FREQUENCIES}' stretches positions otherwise than Llama 3.1 does",
            _OTHER_SOURCE,
        )
    return settings


def _shortest(number: float) -> float:
    """The shortest decimal number that is stored as this float32: 1e-05, not 9.99999974e-06."""
    return float(str(torch.tensor(number, dtype=torch.float32).numpy()))


def _qwen2(entries: _Entries, file: GgufFile) -> dict[str, Any]:
    config = _llama(entries, file)
    # They always have biases on query, key and value, and nowhere else: nothing says so there.
    return {k: v for k, v in config.items() if k not in ("attention_bias", "mlp_bias", "head_dim")}


def _qwen3(entries: _Entries, file: GgufFile) -> dict[str, Any]:
    config = _llama(entries, file)
    del config["mlp_bias"]
    return config


def _gpt2(entries: _Entries, file: GgufFile) -> dict[str, Any]:
    return {
        "n_embd": entries.number("embedding_length"),
        "n_layer": entries.number("block_count"),
        "n_head": entries.number("attention.head_count"),
        "n_positions": entries.number("context_length"),
        "n_inner": entries.number("feed_forward_length"),
        "layer_norm_epsilon": _shortest(entries.number("attention.layer_norm_epsilon", float)),
        "activation_function": "gelu_new",
    }


#: What can be read, by `general.architecture`: our name of the family is the same.
_ARCHITECTURES = {
    "llama": _Architecture(_LLAMA_NAMES, _llama, permuted=True),
    "qwen2": _Architecture(_LLAMA_NAMES, _qwen2),
    "qwen3": _Architecture(_QWEN3_NAMES, _qwen3),
    "gpt2": _Architecture(_GPT2_NAMES, _gpt2),
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}


def _architecture(file: GgufFile) -> str:
    name = file.entries.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise CheckpointError(
            f"{file.path}: holds a model of the architecture {in_line(brief(repr(name)))}, which "
            "pretune does not read from GGUF files",
            f"It reads {', '.join(_ARCHITECTURES)}. Of others, {_OTHER_SOURCE[0].lower()}"
            f"{_OTHER_SOURCE[1:]}",
        )
    return name


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """The entries of `config.json` for the model in a file.

    Raises:
        CheckpointError: another architecture, or a variant of it that pretune does not compute.
    """
    name = _architecture(file)
    entries = _Entries(file, name)
    entries.refuse_variants()
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CheckpointError(
            f"{file.path}: no table of tokens ('token_embd.weight')", "Copy the file again."
        )
    config = _ARCHITECTURES[name].config(entries, file)
    # The table decides: it may have more rows than there are tokens.
    return {
        "model_type": name,
        "architectures": [_CLASSES[name]],
        "vocab_size": table.shape[0],
        **config,
    }


@dataclass(frozen=True)
class _Entry(StoredTensor):
    tensor: GgufTensor
    transposed: bool = False  # whether the published files have it the other way round
    heads: int = 0  # heads whose rows lie in the first Llama's order; 0: all lie as published


class GgufWeights(WeightSource):
    """The tensors of a GGUF file under their published names.

    Values are converted when they are read, some rows at a time: nothing lies in memory twice.

    Args:
        source: the file, or its path.

    Raises:
        CheckpointError: by `GgufFile`; or a tensor has no place in a model of the architecture.
    """

    def __init__(self, source: GgufFile | Path) -> None:
        super().__init__()
        self._file = source if isinstance(source, GgufFile) else GgufFile(source)
        self._architecture = _architecture(self._file)
        for tensor in self._file.tensors.values():
            if tensor.name != _FREQUENCIES:  # config.json has it as settings
                published, entry = self._published(tensor)
                self.entries[published] = entry

    def _published(self, tensor: GgufTensor) -> tuple[str, _Entry]:
        """The published name of a tensor, and how its values lie there."""
        kind, path = _ARCHITECTURES[self._architecture], self._file.path
        part, _, ending = tensor.name.rpartition(".")
        number = re.match(r"blk\.(\d{1,4})\.", part)
        pattern = part if number is None else f"blk.{{i}}.{part[number.end() :]}"
        theirs = kind.names.get(pattern)
        if theirs is None or ending not in ("weight", "bias"):
            raise CheckpointError(
                f"{path}: '{in_line(brief(tensor.name))}' has no place in a {self._architecture} "
                "model as pretune computes it; left out, it would change every answer",
                _OTHER_SOURCE,
            )
        published = f"{theirs.replace('{i}', number[1] if number else '')}.{ending}"
        entry = _Entry(path, tensor.name, [*tensor.shape], tensor.kind.dtype, tensor)
        own = pattern.rpartition(".")[2]
        if self._architecture == "gpt2" and own in _CONV1D and ending == "weight":
            return published, replace(entry, shape=[*tensor.shape[::-1]], transposed=True)
        if kind.permuted and own in ("attn_q", "attn_k"):
            entries = _Entries(self._file, self._architecture)
            heads = entries.number("attention.head_count")
            if own == "attn_k":
                heads = entries.number("attention.head_count_kv", default=heads)
            if heads < 1 or tensor.shape[0] % (2 * heads):
                raise CheckpointError(
                    f"{path}: '{tensor.name}' has {tensor.shape[0]} rows, which {heads} heads "
                    "cannot share",
                    "Copy the file again.",
                )
            return published, replace(entry, heads=heads)
        return published, entry

    @override
    def read_into(self, name: str, out: torch.Tensor) -> None:
        entry: _Entry = self.entries[name]
        self.converted += out.dtype != entry.dtype
        if entry.heads:
            # Rows 0, 1, 2, 3, ... of a head are pairs that are turned together; published files
            # have the first of all pairs, then the second of all.
            whole = torch.empty(entry.tensor.shape, dtype=out.dtype)
            self._file.read(entry.tensor, whole)
            pairs = whole.view(entry.heads, -1, 2, *whole.shape[1:])
            out.copy_(pairs.transpose(1, 2).reshape(whole.shape))
        else:
            self._file.read(entry.tensor, out.t() if entry.transposed else out)
        copy_checked(out, out, entry.path, entry.stored)
