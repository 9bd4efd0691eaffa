"""GPT-2 as GGUF: read back by the `gguf` package under the names that llama.cpp looks for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import (
    MODEL_ARCH,
    MODEL_TENSOR,
    MODEL_TENSORS,
    TENSOR_NAMES,
    GGUFReader,
    GGUFWriter,
    TokenType,
)

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


def test_what_a_killed_export_left_is_removed(gpt2: Bundle, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".model.gguf.{dead.pid}.tmp"
    left.write_bytes(b"half")
    export_gguf(gpt2, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


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


def test_a_disk_that_takes_a_part(
    gpt2: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numpy tells how much it wrote, and not why: it has no number of an error."""

    def full(*_: object, **__: object) -> None:
        raise OSError("9600 requested and 2360 written")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(RunError, match=r"model\.gguf: the disk took only a part of the file"):
        export_gguf(gpt2, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []
