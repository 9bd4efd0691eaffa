"""Small GGUF files, written by the `gguf` package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer

#: The sizes of a tiny Llama, as transformers names them; rows are whole blocks of 32 numbers.
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: As SmolLM2 has them: the unknown token, the beginning and the end of a message.
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def bpe() -> Tokenizer:
    """A byte-level BPE of some merges, with no token but those of bytes and merges."""
    return train_tokenizer(["the film the film a good one in 2024"] * 9, "bpe", 270)


def llama_state(kind: str, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a tiny Llama, Qwen2 or Qwen3, under the names of transformers."""
    width, inner, size = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["head_dim"]
    heads, kv = SIZES["num_attention_heads"], SIZES["num_key_value_heads"]
    shapes: dict[str, tuple[Any, ...]] = {
        "model.embed_tokens.weight": (rows, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (rows, width),
    }
    for i in range(int(SIZES["num_hidden_layers"])):
        layer = f"model.layers.{i}"
        for part, shape in {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "self_attn.q_proj": (heads * size, width),
            "self_attn.k_proj": (kv * size, width),
            "self_attn.v_proj": (kv * size, width),
            "self_attn.o_proj": (width, heads * size),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }.items():
            shapes[f"{layer}.{part}.weight"] = shape
        if kind == "qwen2":
            for part, count in (("q", heads), ("k", kv), ("v", kv)):
                shapes[f"{layer}.self_attn.{part}_proj.bias"] = (count * size,)
        if kind == "qwen3":
            shapes |= {f"{layer}.self_attn.{part}_norm.weight": (size,) for part in "qk"}
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=draw) * 0.3 for name, shape in shapes.items()}


def write_llama(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    kind: str = "llama",
    stored: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    entries: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    tokens: bool = True,
) -> Path:
    """Write a model with a tokenizer like SmolLM2's.

    Args:
        path: of the file.
        state: from `llama_state`; without `lm_head.weight` the output is the table of tokens.
        kind: llama, qwen2 or qwen3.
        stored: the format of matrices.
        entries: more entries of numbers, without the name of the architecture.
        tensors: more tensors.
        tokens: whether there is a tokenizer.
    """
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_key_length(SIZES["head_dim"])
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_rope_freq_base(SIZES["rope_theta"])
    for name, value in (entries or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(f"{kind}.{name}", value)
    if tokens:
        write_tokens(writer)
    _write_tensors(writer, {**state, **(tensors or {})}, kind, stored)
    return path


def write_tokens(writer: gguf.GGUFWriter, pre: str = "smollm") -> None:
    """Add a byte-level BPE: the marks, then its tokens, then a row without a token."""
    engine = bpe().engine
    own = sorted(engine.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    names = [*MARKS, *(token for token, _ in own if token not in MARKS), "[PAD]"]
    types = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(names) - 4)
    merges = json.loads(engine.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([*types, gguf.TokenType.UNUSED])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def rows_of_tokens() -> int:
    """Rows of the table of a model with `write_tokens`' tokenizer."""
    known = bpe().engine.get_vocab(with_added_tokens=False)
    return len(MARKS) + sum(token not in MARKS for token in known) + 1


def _write_tensors(
    writer: gguf.GGUFWriter,
    state: Mapping[str, Any],
    kind: str,
    stored: gguf.GGMLQuantizationType,
) -> None:
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(architecture, int(SIZES["num_hidden_layers"]))
    for name, tensor in state.items():
        array = np.asarray(tensor)
        if kind == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = SIZES["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            array = permuted(array, int(heads))
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        if array.ndim == 2 and stored != gguf.GGMLQuantizationType.F32:
            packed = gguf.quants.quantize(array, stored)
            writer.add_tensor(theirs, packed, raw_dtype=stored)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(array: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The rows of queries or keys as convert_hf_to_gguf.py lays them for `llama`: in each head the
    first of all pairs beside the second."""
    size = len(array) // heads
    order = [
        head * size + half * size // 2 + i
        for head in range(heads)
        for i in range(size // 2)
        for half in (0, 1)
    ]
    return array[order]
