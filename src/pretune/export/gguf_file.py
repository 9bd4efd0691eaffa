"""`pretune export --to gguf`: a GPT-2 as one file for llama.cpp and what is built on it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretune.bundle.bundle import Bundle, load
from pretune.checkpoints.atomic_io import atomic_file, discard_left, make_folder
from pretune.errors import CheckpointError, RunError, not_writable, with_article
from pretune.export.onnx_files import exported_model
from pretune.export.onnx_models import LANGUAGE_MODELS, other_engine
from pretune.export.packages import needed
from pretune.models.layers import ACTIVATIONS
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.version import __version__

#: Names of llama.cpp, by ours. `{i}` stands for the number of a layer.
_NAMES = {
    "embeddings.tokens": "token_embd",
    "embeddings.positions": "position_embd",
    "layers.{i}.attention_norm": "blk.{i}.attn_norm",
    "layers.{i}.attention.qkv": "blk.{i}.attn_qkv",
    "layers.{i}.attention.output": "blk.{i}.attn_output",
    "layers.{i}.feed_forward_norm": "blk.{i}.ffn_norm",
    "layers.{i}.feed_forward.up": "blk.{i}.ffn_up",
    "layers.{i}.feed_forward.down": "blk.{i}.ffn_down",
    "final_norm": "output_norm",
}
#: How text is cut into words before BPE: GPT-2's pattern, which llama.cpp knows by this name.
_GPT2_WORDS = "gpt-2"


@dataclass(frozen=True)
class GgufExport:
    """What was written: the file, its size in bytes, and how many tensors it holds."""

    file: Path
    size: int
    tensors: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"file": str(self.file), "size": self.size, "tensors": self.tensors}


def export_gguf(
    source: str | Path | Bundle, path: Path, *, allow_pickle: bool = False
) -> GgufExport:
    """Write a GPT-2 in float32 as a GGUF file, and read it back.

    Args:
        source: from `load`, or what `load` takes.
        path: must not exist yet.
        allow_pickle: as for `load`.

    Raises:
        CheckpointError: llama.cpp has no such model or no such tokenizer.
        RunError: the file exists, or a package is missing.
    """
    gguf = needed("gguf")
    if path.exists():
        raise RunError(f"{path}: exists already", "Name another file: --output FILE.")
    bundle = source if isinstance(source, Bundle) else load(source, allow_pickle=allow_pickle)
    _check_supported(bundle)
    vocabulary = _vocabulary(bundle.tokenizer)
    exported_model(bundle)  # refuses adapters that are not merged
    tensors = _tensors(bundle)
    try:
        make_folder(path.parent)
        discard_left(path)
        with atomic_file(path) as aside:
            with closing(gguf.GGUFWriter(aside, "gpt2")) as writer:
                _write_sizes(writer, bundle)
                _write_vocabulary(writer, bundle, vocabulary, gguf.TokenType)
                for name, array in tensors.items():
                    writer.add_tensor(name, array)
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
                writer.write_tensors_to_file()
            _check_written(gguf.GGUFReader(aside), tensors)
    except OSError as error:
        if error.errno is None:  # numpy's, which counts what was written
            raise RunError(
                f"{path}: the disk took only a part of the file; it may be full",
                "Make room, or choose another --output.",
            ) from None
        raise not_writable(path, "--output", error) from None
    return GgufExport(path, path.stat().st_size, len(tensors))


def _check_supported(bundle: Bundle) -> None:
    """Refuse what llama.cpp's GPT-2 does not compute."""
    family: str = bundle.family.model_type
    config: Any = bundle.backbone.config
    writes = bundle.task is not None and bundle.task.head in LANGUAGE_MODELS
    if family != "gpt2" or not writes:
        what = "bare" if bundle.task is None else bundle.task.name
        raise CheckpointError(
            f"{with_article(family)} model ({what}) cannot be written as GGUF here",
            f"Only a GPT-2 that writes text can. {other_engine(bundle.backbone)}",
        )
    if config.attention_scale(1) is not None:
        raise CheckpointError(
            "config: its scores are not divided by the square root of the width of a head alone "
            "(scale_attn_weights, scale_attn_by_inverse_layer_idx), as those of llama.cpp's GPT-2",
            other_engine(bundle.backbone),
        )
    activation = getattr(config, config.activation_name)
    if ACTIVATIONS[activation] is not ACTIVATIONS["gelu_new"]:
        raise CheckpointError(
            f"config: {config.activation_name} is {activation}; llama.cpp's GPT-2 has gelu_new",
            other_engine(bundle.backbone),
        )


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the contents of `tokenizer.json`, if llama.cpp cuts text as it does."""
    parts: dict[str, Any] = json.loads(tokenizer.engine.to_str())
    cuts = parts["pre_tokenizer"] or {}
    as_gpt2 = cuts.get("type") == "ByteLevel" and cuts.get("use_regex", True)
    if parts["model"]["type"] != "BPE" or not as_gpt2 or parts["normalizer"] is not None:
        raise CheckpointError(
            "the tokenizer is no byte-level BPE as GPT-2's, and llama.cpp would read other tokens",
            "--to onnx writes it.",
        )
    return parts


def _tensors(bundle: Bundle) -> dict[str, np.ndarray[Any, Any]]:
    """The weights under llama.cpp's names; the output layer is the table of tokens."""
    tensors = {}
    for name, parameter in bundle.backbone.named_parameters():
        part, _, kind = name.rpartition(".")
        number = next((piece for piece in part.split(".") if piece.isdigit()), "")
        pattern = part.replace(f".{number}.", ".{i}.") if number else part
        theirs = _NAMES[pattern].replace("{i}", number)
        tensors[f"{theirs}.{kind}"] = parameter.detach().to("cpu", torch.float32).numpy()
    return tensors


def _write_sizes(writer: Any, bundle: Bundle) -> None:
    config: Any = bundle.backbone.config
    writer.add_name(bundle.folder.name if bundle.folder is not None else "gpt2")
    writer.add_description(f"exported by pretune {__version__}")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(0)  # float32


def _write_vocabulary(writer: Any, bundle: Bundle, parts: dict[str, Any], kinds: Any) -> None:
    """Write tokens, their kinds and merges; rows of the table without a token are unused."""
    tokenizer = bundle.tokenizer
    rows = bundle.backbone.config.size("vocab_size")
    known = {i: token for token, i in tokenizer.engine.get_vocab(with_added_tokens=True).items()}
    added = tokenizer.engine.get_added_tokens_decoder()
    tokens, types = [], []
    for row in range(rows):
        tokens.append(known.get(row, f"[UNUSED{row}]"))
        kind = kinds.NORMAL if row in known else kinds.UNUSED
        if row in added:
            kind = kinds.CONTROL if added[row].special else kinds.USER_DEFINED
        types.append(kind)
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_GPT2_WORDS)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(bool((parts["pre_tokenizer"] or {}).get("add_prefix_space")))
    end = tokenizer.end_id
    if end is not None:
        writer.add_bos_token_id(end)
        writer.add_eos_token_id(end)


def _check_written(reader: Any, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """Compare what was written with what it should be, bit by bit."""
    read = {tensor.name: tensor.data for tensor in reader.tensors}
    same = {n for n, array in tensors.items() if n in read and np.array_equal(read[n], array)}
    if {*read} != same or {*tensors} != same:
        raise CheckpointError(
            f"the GGUF file was not written as it should be: {sorted({*read, *tensors} - same)}",
            "Is the disk in order? Try again.",
        )
