"""GPT-2 as GGUF: read back by the `gguf` package under the names that llama.cpp looks for."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES, GGUFReader, TokenType

from pretune.bundle.bundle import Bundle, load
from pretune.errors import CheckpointError, RunError
from pretune.export.gguf_file import export_gguf
from pretune.export.onnx_files import export_onnx
from pretune.models.pruned import prune_heads
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tokenizers.train import train_tokenizer


@pytest.fixture(scope="module")
def gpt2() -> Bundle:
    """A small GPT-2 from random weights, with two rows more than its tokenizer has tokens."""
    tokenizer = train_tokenizer(["the film the film a good one"] * 9, "bpe", 265)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
    more = {"vocab_size": tokenizer.vocab_size + 2}
    task = CausalLm(CausalLmOptions(max_length=16))
    bundle = load("gpt2-small", task=task, tokenizer=tokenizer, config=sizes | more)
    for parameter in bundle.model.parameters():
        torch.nn.init.normal_(parameter)
    return bundle


@pytest.mark.parametrize("export", [export_gguf, export_onnx])
def test_a_writer_with_fewer_heads_is_refused(
    gpt2: Bundle, export: Callable[..., object], tmp_path: Path
) -> None:
    pruned = deepcopy(gpt2)
    prune_heads(pruned.backbone, {1: [0]})
    with pytest.raises(RunError, match="attention heads were removed"):
        export(pruned, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_tensors_and_vocabulary(gpt2: Bundle, tmp_path: Path) -> None:
    result = export_gguf(gpt2, tmp_path / "model.gguf")
    reader = GGUFReader(result.file)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    known = {
        TENSOR_NAMES[kind].format(bid=i)
        for kind in MODEL_TENSORS[MODEL_ARCH.GPT2]
        for i in range(2)
        if kind != MODEL_TENSOR.OUTPUT
    }
    assert {name.rpartition(".")[0] for name in tensors} == known
    up = gpt2.backbone.get_parameter("layers.1.feed_forward.up.weight").detach().numpy()
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.weight"], up)

    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["gpt2.block_count"] == 2
    assert fields["gpt2.attention.head_count"] == 2
    size = gpt2.tokenizer.vocab_size
    assert fields["tokenizer.ggml.tokens"][:size] == gpt2.tokenizer.tokens(range(size))
    assert fields["tokenizer.ggml.token_type"][size:] == [TokenType.UNUSED] * 2
    assert fields["tokenizer.ggml.eos_token_id"] == gpt2.tokenizer.end_id
    assert len(fields["tokenizer.ggml.merges"]) > 3


def test_other_models_are_refused(gpt2: Bundle, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a bert model \(bare\) cannot be written as GGUF"):
        export_gguf(tiny_folder, tmp_path / "model.gguf")
    other = replace(gpt2, tokenizer=load(tiny_folder).tokenizer)
    with pytest.raises(CheckpointError, match="no byte-level BPE"):
        export_gguf(other, tmp_path / "model.gguf")
    (tmp_path / "taken").touch()
    with pytest.raises(RunError, match="exists already"):
        export_gguf(gpt2, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
