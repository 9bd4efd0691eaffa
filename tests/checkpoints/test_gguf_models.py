"""Models in GGUF files: what was written comes back under the published names, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from pretune.checkpoints.gguf import GgufFile
from pretune.checkpoints.gguf_models import GgufWeights, gguf_config
from pretune.errors import CheckpointError
from tests.checkpoints.gguf_files import SIZES, llama_state, write_llama

ROWS = 64
Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_weights_come_back_under_their_published_names(kind: str, tmp_path: Path) -> None:
    state = llama_state(kind, ROWS)
    file = GgufFile(write_llama(tmp_path / "m.gguf", state, kind=kind, tokens=False))
    weights = GgufWeights(file)
    assert weights.names == {*state}
    for name, tensor in state.items():
        assert weights.shape(name) == [*tensor.shape]
        assert torch.equal(weights.read(name), tensor), name
    config = gguf_config(file)
    known = {**SIZES, "vocab_size": ROWS, "model_type": kind, "tie_word_embeddings": False}
    if kind == "qwen2":  # it has no width of heads of its own
        del known["head_dim"]
    assert known.items() <= config.items()


def test_packed_weights_are_those_that_llama_cpp_has(tmp_path: Path) -> None:
    state = llama_state("llama", ROWS)
    del state["lm_head.weight"]
    path = write_llama(tmp_path / "m.gguf", state, stored=Q8_0, tokens=False)
    weights = GgufWeights(path)
    # A row of queries keeps its blocks wherever it lies, so the packing can be checked before.
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        packed = gguf.quants.quantize(state[name].numpy(), Q8_0)
        expected = gguf.dequantize(packed, Q8_0)
        np.testing.assert_array_equal(weights.read(name).numpy(), expected)
        assert np.abs(expected - state[name].numpy()).max() < 0.01
    assert gguf_config(GgufFile(path))["tie_word_embeddings"] is True


def _frequencies(factor: float, size: int, theta: float) -> np.ndarray[Any, Any]:
    """As convert_hf_to_gguf.py computes them for Llama 3.1 (`_generate_rope_freqs`)."""
    factors = []
    for freq in 1.0 / theta ** (np.arange(0, size, 2) / size):
        wave = 2 * np.pi / freq
        if wave < 8192 / 4:
            factors.append(1.0)
        elif wave > 8192:
            factors.append(factor)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def test_positions_that_are_stretched(tmp_path: Path) -> None:
    state, path = llama_state("llama", ROWS), tmp_path / "m.gguf"

    def scaling(**more: Any) -> Any:
        return gguf_config(GgufFile(write_llama(path, state, tokens=False, **more)))["rope_scaling"]

    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert scaling(entries=linear) == {"rope_type": "linear", "factor": 4.0}
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}
    yarn |= {"rope.scaling.original_context_length": 32}
    assert scaling(entries=yarn) == {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 32,
    }
    # At this base the waves of a head of 8 numbers are short, between the two, and long.
    base = {"rope.freq_base": 500_000.0}
    factors = {"rope_freqs.weight": _frequencies(8.0, 8, 500_000.0)}
    assert scaling(entries=base, tensors=factors) == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors["rope_freqs.weight"][1] *= 1.5
    with pytest.raises(CheckpointError, match=r"otherwise than Llama 3\.1"):
        scaling(entries=base, tensors=factors)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"expert_count": 8}, "llama.expert_count is 8"),
        ({"rope.dimension_count": 4}, "llama.rope.dimension_count is 4: only a part"),
        ({"attention.value_length": 16}, "value_length is 16"),
        ({"attention.sliding_window": 32}, "sliding_window is 32"),
        ({"logit_scale": 0.25}, "logit_scale is 0.25"),
        ({"rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope'"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.attn_factor": 2.0},
            "with attn_factor from a GGUF file",
        ),
    ],
)
def test_variants_that_are_computed_otherwise_are_refused(
    entries: dict[str, Any], why: str, tmp_path: Path
) -> None:
    path = write_llama(tmp_path / "m.gguf", llama_state("llama", 32), entries=entries, tokens=False)
    with pytest.raises(CheckpointError, match=why):
        gguf_config(GgufFile(path))


def test_other_models_and_tensors_are_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "m.gguf", llama_state("llama", 32)
    write_llama(path, state, tensors={"blk.0.attn_sinks.weight": torch.ones(4)}, tokens=False)
    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_sinks\.weight' has no place"):
        GgufWeights(path)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="of the architecture 'gemma3'"):
        gguf_config(GgufFile(path))


def test_sizes_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.ones((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"llama\.embedding_length is missing"):
        gguf_config(GgufFile(path))
