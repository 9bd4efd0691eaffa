from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.experiments.gpu_memory import AsAutocast, Sizes, TracedStep, gpu_memory, trace_step
from pretune.models.bert import BertConfig, BertModel
from pretune.models.families import build_head
from pretune.models.gpt2 import Gpt2Config, Gpt2Model

HIDDEN, HEADS, VOCABULARY = 64, 4, 100


def gpt(layers: int, **changes: float) -> nn.Module:
    sizes = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_head": HEADS, "n_layer": layers}
    drops = dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), 0.0)
    with torch.device("meta"):
        config = Gpt2Config.from_dict({**sizes, **drops, **changes})
        return build_head(Gpt2Model(config), "causal_lm", 0)


def a_layer(batch: int, length: int, *, bf16: bool, recompute: bool, **changes: float) -> float:
    """Bytes that each further layer keeps for a token, beside copies of its weights."""
    how = {"bf16": bf16, "recompute": recompute, "again": False}
    few, more = (trace_step(gpt(n, **changes), batch, length, **how) for n in (2, 4))
    more_bytes = (more.forward - more.copies) - (few.forward - few.copies)
    return more_bytes / 2 / (batch * length)


class TestActivations:
    def test_of_a_layer_by_hand(self) -> None:
        """What autograd keeps of a pre-norm layer under bf16 autocast, with FlashAttention."""
        residuals = 2 * 4  # float32, what goes into both norms
        norms = 2 * (2 + 2 * 4 / HIDDEN)  # their outputs in bf16; mean and deviation of each row
        attention = (3 + 1) * 2 + 4 * HEADS / HIDDEN  # q, k, v, output; log-sum-exp
        inner = (4 + 4) * 2  # before and after GELU
        by_hand = HIDDEN * (residuals + norms + attention + inner)
        found = a_layer(4, 128, bf16=True, recompute=False)
        assert found == pytest.approx(by_hand, rel=0.02)

    def test_dropout_keeps_a_byte_each(self) -> None:
        plain = a_layer(2, 32, bf16=True, recompute=False)
        dropped = a_layer(2, 32, bf16=True, recompute=False, resid_pdrop=0.1)
        assert dropped - plain == pytest.approx(2 * HIDDEN, rel=0.05)
        # That of the weights of attention is in the kernel, whatever the length.
        long = a_layer(2, 256, bf16=True, recompute=False, attn_pdrop=0.1)
        assert long == pytest.approx(plain, rel=0.01)

    def test_recomputed_only_what_enters_a_layer_stays(self) -> None:
        assert a_layer(2, 64, bf16=True, recompute=True) == 4 * HIDDEN
        assert a_layer(2, 64, bf16=False, recompute=True) == 4 * HIDDEN

    def test_float32_keeps_more(self) -> None:
        wide, narrow = (a_layer(2, 64, bf16=b, recompute=False) for b in (False, True))
        assert narrow < wide < 2 * narrow

    def test_copies_of_weights(self) -> None:
        step = trace_step(gpt(2), 2, 16, bf16=True, recompute=False, again=False)
        layer = 12 * HIDDEN**2 + 9 * HIDDEN  # four matrices with biases
        assert step.copies == 2 * (2 * layer + VOCABULARY * HIDDEN)
        exact = trace_step(gpt(2), 2, 16, bf16=False, recompute=False, again=False)
        assert exact.copies == 0

    def test_earlier_gradients_are_beside(self) -> None:
        first, later = (
            trace_step(gpt(2), 8, 64, bf16=True, recompute=False, again=a) for a in (False, True)
        )
        trained = Sizes.of(gpt(2), 1).trained
        assert first.peak < later.peak <= first.peak + trained
        assert later.beside(trained) >= first.forward - first.copies

    @pytest.mark.parametrize("head", ["masked_lm", "sequence_classification", "pretraining"])
    def test_heads(self, head: str) -> None:
        sizes = {"vocab_size": 90, "hidden_size": 32, "num_attention_heads": 2}
        more = {"num_hidden_layers": 2, "intermediate_size": 64}
        with torch.device("meta"):
            model = build_head(BertModel(BertConfig.from_dict({**sizes, **more})), head, 2)
        full, again = (
            trace_step(model, 4, 32, bf16=True, recompute=r, again=False) for r in (False, True)
        )
        assert 0 < again.forward < full.forward
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())


#: What a CPU casts as CUDA does; norms and softmax are in float32 on CUDA alone.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "matmul": lambda x, w: x @ w.T,
    "bmm": lambda x, w: torch.bmm(x[None], w.T[None]),
    "attention": lambda x, w: F.scaled_dot_product_attention(
        x[None, None], w[None, None], w[None, None]
    ),
    "gelu of a product": lambda x, w: F.gelu(F.linear(x, w)),
    "residual": lambda x, w: x + F.linear(x, w),
    "logsumexp": lambda x, w: F.linear(x, w).float().logsumexp(-1),
    "loss": lambda x, w: F.cross_entropy(
        F.linear(x, w), torch.zeros(4, dtype=torch.int64, device=x.device)
    ),
}


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_casts_as_autocast(name: str) -> None:
    operation, types = OPERATIONS[name], []
    for device in ("cpu", "meta"):
        x, w = (torch.zeros(4, 4, device=device) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16) if device == "cpu" else AsAutocast(keep=True):
            types.append(operation(x, w).dtype)
    assert types[0] == types[1]


class TestSizes:
    def test_of_shards(self) -> None:
        model = gpt(2)
        sizes = Sizes.of(model, 8)
        whole = 4 * sum(p.numel() for p in model.parameters())
        assert sizes.parameters == sizes.trained == whole
        rows = [math.ceil(len(p) / 8) * (p.numel() // len(p)) for p in model.parameters()]
        assert sizes.shard == 4 * sum(rows)
        assert whole / 8 <= sizes.shard < 1.05 * whole / 8
        assert sizes.rest + 2 * sizes.layer == whole

    def test_what_is_frozen_is_held_and_not_learned(self) -> None:
        model = gpt(2)
        model.get_submodule("backbone.embeddings").requires_grad_(False)
        sizes = Sizes.of(model, 4)
        assert sizes.trained < sizes.parameters
        assert sizes.trained_rest == 4 * 2 * HIDDEN  # the last norm


def way(parallel: str, processes: int, *, accumulates: bool = False, average: bool = False):  # type: ignore[no-untyped-def]
    sizes = Sizes(1000, 800, 260, 210, 300, 400, 250, 300)
    step = TracedStep(2, 64, 5000, 5500, 500)
    return gpu_memory(
        sizes,
        step,
        parallel=parallel,
        recompute=False,
        processes=processes,
        accumulates=accumulates,
        average=average,
        others=7,
        capacity=0.0,
    )


class TestParts:
    def test_of_one_process(self) -> None:
        for parallel in ("ddp", "fsdp"):
            found = way(parallel, 1, average=True)
            assert (found.weights, found.gradients, found.optimizer) == (1000, 800, 1600)
            assert (found.average, found.exchange, found.others) == (800, 0, 7)
            assert (found.copies, found.activations) == (500, 4500)

    def test_ddp_has_its_buckets(self) -> None:
        assert way("ddp", 4).exchange == 800
        assert way("ddp", 4).total - way("ddp", 1).total == 800

    def test_fsdp_has_shards(self) -> None:
        found = way("fsdp", 4, average=True)
        assert (found.weights, found.gradients, found.optimizer) == (260, 210, 420)
        assert found.average == 210
        assert found.exchange == 400 + 2 * 300 + 300

    def test_but_whole_gradients_between_micro_batches(self) -> None:
        found = way("fsdp", 4, accumulates=True)
        assert found.gradients == 210 + 800
        assert found.exchange == 400 + 2 * 300

    def test_what_fits(self) -> None:
        assert not way("ddp", 4).fits
        assert way("ddp", 4).reserve == 1.5 * 2**30
