from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pretune.bundle.bundle import outline
from pretune.data.batch import Feature, FeatureSet, Layout, PackedBatch
from pretune.experiments.costs import (
    FLOAT,
    LiveBytes,
    count_flops,
    estimate_memory,
    known,
    loss_of,
)
from pretune.models.bert import BertConfig, BertModel
from pretune.models.families import build_head
from pretune.models.gpt2 import Gpt2Config, Gpt2Model
from pretune.models.transformer import TransformerConfig, TransformerModel

MakeFolder = Callable[..., Path]

SMALL = {
    "bert": {
        "vocab_size": 100,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
    },
    "distilbert": {"vocab_size": 100, "dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80},
    "gpt2": {"vocab_size": 100, "n_embd": 48, "n_layer": 3, "n_head": 4},
}


def counted(model: nn.Module, batch: PackedBatch) -> int:
    """What PyTorch counts; on the meta device, as it does not know oneDNN's products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch.to("meta"))
    return counter.get_total_flops()


class TestFlops:
    @pytest.mark.parametrize("family", list(SMALL))
    @pytest.mark.parametrize("length", [1, 7, 64])
    def test_a_backbone_as_pytorch_counts(
        self, config_folder: MakeFolder, family: str, length: int
    ) -> None:
        model = outline(config_folder(family, **SMALL[family])).model.eval()
        batch = PackedBatch.of([[1] * length] * 5)
        assert counted(model, batch) == 5 * count_flops(model, length).per_sequence

    @pytest.mark.parametrize("head", ["token_classification", "question_answering", "masked_lm"])
    def test_heads_on_every_token(self, head: str) -> None:
        with torch.device("meta"):
            model = build_head(BertModel(BertConfig.from_dict(SMALL["bert"])), head, 3).eval()
        assert counted(model, PackedBatch.of([[1] * 9])) == count_flops(model, 9).per_sequence

    def test_both_heads_of_pre_training(self) -> None:
        with torch.device("meta"):
            model = build_head(
                BertModel(BertConfig.from_dict(SMALL["bert"])), "pretraining", 0
            ).eval()
        batch = PackedBatch.of([[1] * 9] * 4).to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch, both=True)
        assert counter.get_total_flops() == 4 * count_flops(model, 9).per_sequence

    def test_an_output_layer_that_is_the_vocabulary(self) -> None:
        with torch.device("meta"):
            model = build_head(
                Gpt2Model(Gpt2Config.from_dict(SMALL["gpt2"])), "causal_lm", 0
            ).eval()
        assert counted(model, PackedBatch.of([[1] * 9])) == count_flops(model, 9).per_sequence

    def test_pairs_have_half_of_their_tokens_on_each_side(self) -> None:
        sizes = {"vocab_size": 100, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3}
        heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
        config = TransformerConfig.from_dict({**sizes, **heads, "decoder_start_token_id": 0})
        with torch.device("meta"):
            model = build_head(TransformerModel(config), "translation", 0).to("meta").eval()
        features = [Feature([1] * 18, choices=(9, 9)) for _ in range(4)]
        batch = FeatureSet.of(features).batch(np.arange(4))
        assert counted(model, batch) == 4 * count_flops(model, 18).per_sequence
        assert estimate_memory(model, 4, 18).training > 0

    def test_the_formula_by_hand(self, config_folder: MakeFolder) -> None:
        found = count_flops(outline(config_folder("bert")).model, 128)
        # 12 layers of 4 matrices hidden x hidden and 2 of hidden x 4 hidden.
        assert found.matrix_parameters == 12 * 12 * 768**2 == 84_934_656
        assert found.attention == 4 * 128 * 768 * 12
        assert found.per_token == 2 * 84_934_656 + 4_718_592
        assert found.per_sequence == 128 * found.per_token + 2 * 768**2, "and the pooler, once"
        assert found.training_per_token == 3 * found.per_token

    def test_a_classifier_computes_less_than_every_token(self, config_folder: MakeFolder) -> None:
        """Only the first token goes all the way through the last layer: the formula is a bound."""
        folder = config_folder(
            "bert", **SMALL["bert"], architectures=["BertForSequenceClassification"]
        )
        model = outline(folder).model.eval()
        batch = PackedBatch.of([[1] * 32])
        whole = count_flops(model, 32).per_sequence
        assert 2 / 3 * whole < counted(model, batch) < whole


class TestLiveBytes:
    def test_what_is_gone_is_not_counted(self) -> None:
        here = torch.zeros(1000)
        with LiveBytes(iter([here])) as live:
            one = here + 1
            assert live.now == 4000
            two = one.view(10, 100).t() * 2
            assert live.now == 8000
            del one
            gc.collect()
            assert live.now == 4000
            here.add_(1)
            three = two.flatten()
            assert live.now == 8000, "flattening a transposed tensor copies it"
            assert three.view(5, 200).is_contiguous()
        assert live.peak == 8000

    def test_what_autograd_keeps_is_counted(self) -> None:
        weight = torch.randn(10, 10, requires_grad=True)
        start = torch.randn(5, 10)
        with LiveBytes(iter([weight, start])) as live:
            out = (start @ weight).tanh().tanh().sum()
            assert live.now == 2 * 5 * 10 * 4 + 4, "two results of tanh, and the sum"
            out.backward()
        assert live.now >= weight.numel() * 4


class TestMemory:
    def test_weights_and_moments(self, config_folder: MakeFolder) -> None:
        found = estimate_memory(outline(config_folder("bert")).model, 1, 8)
        head = 2 * 768 + 2
        assert found.weights == found.gradients == FLOAT * (109_482_240 + head)
        assert found.optimizer == 2 * found.weights
        assert found.inference > found.weights
        assert found.training > found.weights + found.optimizer

    def test_activations_grow_with_the_batch(self, config_folder: MakeFolder) -> None:
        model = outline(config_folder("distilbert")).model
        one, two = (estimate_memory(model, batch, 64) for batch in (8, 16))
        assert two.activations == pytest.approx(2 * one.activations, rel=0.01)
        assert two.forward == pytest.approx(2 * one.forward, rel=0.01)

    def test_what_autograd_saves_at_a_real_size(self, config_folder: MakeFolder) -> None:
        """The same numbers as on the CPU, counted another way: by autograd's own hooks."""
        torch.manual_seed(0)
        batch, length = 4, 16
        with torch.device("meta"):
            meta = build_head(
                BertModel(BertConfig.from_dict(SMALL["bert"])), "sequence_classification", 2
            )
        estimate = estimate_memory(meta, batch, length)
        model = build_head(
            BertModel(BertConfig.from_dict(SMALL["bert"])), "sequence_classification", 2
        )
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved: dict[int, int] = {}
        kept = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
                kept.append(tensor)  # an address must not be used again
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(PackedBatch.of([[1] * length] * batch))
            nn.functional.cross_entropy(logits, torch.zeros(batch, dtype=torch.int64))
        assert sum(saved.values()) == pytest.approx(estimate.activations, rel=0.1)

    def test_the_second_head_of_pre_training_counts(self) -> None:
        """The pooled vectors and what the second head makes of them, of 64 sequences."""
        with torch.device("meta"):
            config = BertConfig.from_dict(SMALL["bert"])
            models = [
                build_head(BertModel(config), head, 0) for head in ("masked_lm", "pretraining")
            ]
        one, both = (estimate_memory(model, 64, 8).activations for model in models)
        # First tokens through the last layer, the pooler, two logits each: over 4 x hidden a
        # sequence, in float32.
        assert both - one > FLOAT * 64 * 4 * SMALL["bert"]["hidden_size"]

    def test_sparse_gradients_are_no_matter(self) -> None:
        """A trainer on a CPU leaves tables that asked for them."""
        with torch.device("meta"):
            model = build_head(Gpt2Model(Gpt2Config.from_dict(SMALL["gpt2"])), "causal_lm", 0)
        expected = estimate_memory(model, 2, 8)
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.sparse = True
        assert estimate_memory(model, 2, 8) == expected

    def test_every_family_and_head(self, config_folder: MakeFolder) -> None:
        for family, head in (
            ("bert", "masked_lm"),
            ("bert", "pretraining"),
            ("distilbert", "masked_lm"),
            ("gpt2", "causal_lm"),
            ("bert", "token_classification"),
            ("bert", "token_classification_crf"),
            ("gpt2", "sequence_classification"),
        ):
            with torch.device("meta"):
                model = build_head(outline(config_folder(family, **SMALL[family])).model, head, 3)
            found = estimate_memory(model, 2, 16)
            assert 0 < found.forward < found.activations, (family, head)


#: (batch, length): of the same model, few activations and many.
SHAPES = [(4, 32), (32, 128)]

MEASURE = """
import json, sys
import numpy as np
import torch
from pathlib import Path
from pretune.bundle.bundle import load
from pretune.data.batch import Feature, FeatureSet
from pretune.recipe.schema import TrainSection
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.training.loop import Trainer
from pretune.training.validation import evaluate_features

what, batch, length, source, warm = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]

def held(name):
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) * 1024

def work(source, batch, length):
    task = Classify(ClassifyOptions(max_length=length), ["a", "b"])
    model = load(source, task=task, dropout=0.1, attention_dropout=0.1).model
    features = FeatureSet.of(
        Feature([5] * length, [0] * length, {"label": i % 2}, i) for i in range(batch)
    )
    if what == "training":
        options = TrainSection(batch_size=batch, max_steps=2, device="cpu")
        Trainer(task, model, features, options=options).fit()
    else:
        evaluate_features(task, model, features, batch_tokens=batch * length)

work(warm, 2, 16)  # libraries, kernels and pools that every process needs
Path("/proc/self/clear_refs").write_text("5")  # forget the peak
before = held("VmRSS:")
work(source, batch, length)
print(json.dumps(held("VmHWM:") - before))
"""


def measured(what: str, batch: int, length: int, source: Path, warm: Path) -> int:
    """Bytes by which a fresh process grows at most."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what, str(batch), str(length), str(source), str(warm)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout))


@pytest.mark.parametrize(("dropout", "least", "most"), [(0.0, 0, 1), (0.1, 2, 9)])
def test_scores_are_kept_where_the_kernel_of_the_cpu_keeps_them(
    dropout: float, least: int, most: int
) -> None:
    """With dropout of attention weights a CPU takes the plain kernel, else one without scores."""
    length, heads = 256, 4
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": heads, "n_positions": length, "vocab_size": 40}
    config = Gpt2Config(**sizes, attn_pdrop=dropout, embd_pdrop=0.0, resid_pdrop=0.0)
    with torch.device("meta"):
        model = build_head(Gpt2Model(config), "causal_lm")
    estimated = estimate_memory(model, 1, length).activations
    # The same on the CPU, where tensors have values.
    model = build_head(Gpt2Model(config), "causal_lm").train()
    ids = torch.zeros(length, dtype=torch.int64)
    layout = Layout.of([length], "cpu")
    batch = PackedBatch(tokens=ids, layout=layout, positions=torch.arange(length))
    with LiveBytes(known(model, batch)) as live:
        loss = loss_of(model, batch)
        taken = live.peak
    loss.backward()
    assert estimated == pytest.approx(taken, rel=0.15)
    table = FLOAT * heads * length**2  # of all scores
    assert least * table <= estimated < most * table


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("what", ["training", "inference"])
@pytest.mark.parametrize(("batch", "length"), SHAPES)
def test_the_estimate_is_what_a_process_takes(
    minilm: Path, tiny_folder: Path, what: str, batch: int, length: int
) -> None:
    estimate = estimate_memory(outline(minilm).model, batch, length)
    wanted = estimate.training if what == "training" else estimate.inference
    # How the allocator cuts up its heap differs from run to run, and only ever adds to the peak.
    taken = measured(what, batch, length, minilm, tiny_folder)
    for _ in range(2):
        if taken > 1.15 * wanted:
            taken = min(taken, measured(what, batch, length, minilm, tiny_folder))
    assert wanted == pytest.approx(taken, rel=0.15)
