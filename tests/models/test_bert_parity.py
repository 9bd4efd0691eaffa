"""Our BERT against transformers': the same weights must give the same numbers."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pretune.bundle import bundle
from pretune.checkpoints.config import read_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.names import name_table
from pretune.checkpoints.open import open_weights
from pretune.data.batch import PackedBatch
from pretune.models.bert import BertClassifier, BertModel
from pretune.models.families import FAMILIES
from pretune.tokenizers.load import load_tokenizer

BERT = FAMILIES["bert"]
VALUES, GRADIENTS = 1e-5, 1e-4  # absolute, of hidden states and gradients of the order of 1

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Hello",
    "A model of language predicts words, not truths; "
    "yet with enough of them it seems to know what a dog is and how high it jumps. " * 3,
    "1 + 1 = 2",
]
PAIRS = ["It is an animal.", "World!", "What a long sentence that was.", "x"]


@dataclass
class Example:
    """One input in both forms."""

    ids: list[list[int]]
    segments: list[list[int]] | None = None

    @property
    def packed(self) -> PackedBatch:
        return PackedBatch.of(self.ids, self.segments)

    @property
    def mask(self) -> torch.Tensor:
        lengths = torch.tensor([len(ids) for ids in self.ids])
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def pad(self, rows: list[list[int]]) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    @property
    def padded(self) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": self.pad(self.ids), "attention_mask": self.mask.long()}
        if self.segments is not None:
            inputs["token_type_ids"] = self.pad(self.segments)
        return inputs


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def compare_values(ours: BertModel, theirs: nn.Module, example: Example) -> None:
    """All hidden states, all attention maps and the pooled output."""
    wanted = theirs(**example.padded, output_hidden_states=True, output_attentions=True)
    got = ours(example.packed, output_hidden_states=True, output_attentions=True)
    mask = example.mask
    assert len(got.hidden_states) == len(wanted.hidden_states) == len(ours.layers) + 1
    for mine, other in zip(got.hidden_states, wanted.hidden_states, strict=True):
        close(mine, other[mask], VALUES)
    close(got.last_hidden_state, wanted.last_hidden_state[mask], VALUES)
    close(got.pooler_output, wanted.pooler_output, VALUES)
    for maps, padded in zip(got.attentions, wanted.attentions, strict=True):
        for i, ids in enumerate(example.ids):
            close(maps[i], padded[i, :, : len(ids), : len(ids)], VALUES)


def compare_gradients(ours: nn.Module, theirs: nn.Module, losses, head: str) -> None:
    """The gradient of every parameter; transformers' q, k and v are one matrix here."""
    for model, loss in zip((ours, theirs), losses, strict=True):
        model.zero_grad()
        loss.backward()
    layers = ours.get_submodule("layers" if head == "backbone" else "backbone.layers")
    table = name_table(BERT, head, (len(layers),))
    mine, others = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert mine.keys() == table.keys()
    assert {name for names in table.values() for name in names.parts} == others.keys()
    for name, names in table.items():
        parts = names.parts
        got = [p.grad for p in (mine[name], *(others[part] for part in parts))]
        got = [torch.zeros(()) if g is None else g for g in got]
        wanted = torch.cat(got[1:]) if len(parts) > 1 else got[1]
        close(got[0], wanted.expand(got[0].shape), GRADIENTS)


# MiniLM


@pytest.fixture(scope="module")
def minilm(minilm_folder):
    theirs = transformers.BertModel.from_pretrained(minilm_folder, attn_implementation="eager")
    return minilm_folder, theirs.eval()


def encode(folder: Path, first: list[str], second: list[str] | None = None) -> Example:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(first, second, truncation=True, max_length=200)
    return Example(encoded["input_ids"], encoded["token_type_ids"])


@pytest.mark.parametrize("second", [None, PAIRS])
@torch.no_grad()
def test_minilm_gives_transformers_numbers(matmul, all_threads, minilm, second):
    folder, theirs = minilm
    ours = bundle.load(folder).model.eval()
    example = encode(folder, SENTENCES, second)
    assert len({len(ids) for ids in example.ids}) == 4
    assert max(map(max, example.segments)) == (0 if second is None else 1)
    compare_values(ours, theirs, example)
    # Many sequences: enough rows for padded ones, several groups, every order of lengths.
    many = Example(example.ids * 3, example.segments * 3)
    batch = many.packed
    first = ours(batch, select=batch.first)
    close(first.pooler_output, theirs(**many.padded).pooler_output, VALUES)


@torch.no_grad()
def test_minilm_encodes_text_as_transformers_does(minilm):
    folder, theirs = minilm
    loaded = bundle.load(folder)
    tokens = load_tokenizer(folder).encode(SENTENCES, PAIRS, max_length=200)
    ids = [list(e.ids) for e in tokens]
    segments = [list(e.segments) for e in tokens]
    example = encode(folder, SENTENCES, PAIRS)
    assert ids == example.ids
    assert segments == example.segments
    pooled = loaded.model.eval()(PackedBatch.of(ids, segments)).pooler_output
    close(pooled, theirs(**example.padded).pooler_output, VALUES)


# Any BERT


@st.composite
def configs(draw, **fixed):
    # At least 16: a LayerNorm over 2 numbers is a sign function, and no two programs agree at 0.
    heads = draw(st.integers(1, 4))
    sizes = [size for size in (4, 5, 8, 16, 24) if heads * size >= 16]
    return {
        "vocab_size": draw(st.integers(2, 60)),
        "hidden_size": heads * draw(st.sampled_from(sizes)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 40)),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "gelu_new", "silu"])),
        "max_position_embeddings": draw(st.integers(24, 40)),
        "type_vocab_size": draw(st.integers(1, 3)),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5])),
        "attn_implementation": "eager",
        **fixed,
    }


@st.composite
def examples(draw, config):
    lengths = draw(st.lists(st.integers(1, 24), min_size=1, max_size=6))
    seed = draw(st.integers(0, 2**31 - 1))
    generator = torch.Generator().manual_seed(seed)

    def rows(least: int, most: int) -> list[list[int]]:
        return [torch.randint(least, most, (n,), generator=generator).tolist() for n in lengths]

    with_segments = draw(st.booleans())
    # Not 0, the pad token: transformers gives it no gradient, and no text has it.
    ids = rows(1, config["vocab_size"])
    return Example(ids, rows(0, config["type_vocab_size"]) if with_segments else None)


def randomise(model: nn.Module, seed: int) -> None:
    """Weights of a trained model's size: with fresh ones (0.02, zero biases) errors would hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "LayerNorm.weight" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif "embeddings" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))


def ours_of(theirs: nn.Module, head: str) -> nn.Module:
    """Our model, by way of a folder that transformers wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder)
        config = BERT.backbone.config_class.from_dict(read_config(folder))

        def build() -> nn.Module:
            backbone = BertModel(config)
            if head == "backbone":
                return backbone
            return BertClassifier(backbone, theirs.config.num_labels)

        model, report = load_into(build, open_weights(folder), folder, BERT, head)
    assert report.missing == ()
    assert report.unexpected == ()
    return model.eval()


def pair_of(config: dict, seed: int, head: str = "backbone", **options):
    kind = transformers.BertModel if head == "backbone" else None
    kind = kind or transformers.BertForSequenceClassification
    theirs = kind(transformers.BertConfig(**config, **options)).eval()
    randomise(theirs, seed)
    return ours_of(theirs, head), theirs


several = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
seeds = st.integers(0, 2**31 - 1)


@several
@given(st.data(), seeds)
def test_any_bert_gives_transformers_numbers(matmul, data, seed):
    config = data.draw(configs())
    example = data.draw(examples(config))
    ours, theirs = pair_of(config, seed)
    with torch.no_grad():
        compare_values(ours, theirs, example)


def backbone_losses(ours, theirs, example: Example, *, select: bool):
    """The same scalar of both models: random weights on all outputs, so that nothing cancels."""
    batch, mask = example.packed, example.mask
    generator = torch.Generator().manual_seed(1)
    wanted = theirs(**example.padded)
    probe = torch.randn(wanted.pooler_output.shape, generator=generator) / len(example.ids)
    theirs_loss = (wanted.pooler_output * probe).sum()
    if select:
        return (ours(batch, select=batch.first).pooler_output * probe).sum(), theirs_loss
    got = ours(batch)
    rows = torch.randn(got.last_hidden_state.shape, generator=generator) / batch.num_tokens
    ours_loss = (got.pooler_output * probe).sum() + (got.last_hidden_state * rows).sum()
    return ours_loss, theirs_loss + (wanted.last_hidden_state[mask] * rows).sum()


@pytest.mark.parametrize("select", [False, True])
@several
@given(st.data(), seeds)
def test_any_bert_gives_transformers_gradients(matmul, select, data, seed):
    config = data.draw(configs())
    example = data.draw(examples(config))
    ours, theirs = pair_of(config, seed)
    losses = backbone_losses(ours, theirs, example, select=select)
    compare_gradients(ours, theirs, losses, "backbone")


@several
@given(st.data(), seeds, st.integers(2, 5))
def test_the_classifier_gives_transformers_logits_and_gradients(matmul, data, seed, labels):
    config = data.draw(configs())
    example = data.draw(examples(config))
    ours, theirs = pair_of(config, seed, "sequence_classification", num_labels=labels)
    targets = torch.tensor([(7 * i + seed) % labels for i in range(len(example.ids))])
    wanted = theirs(**example.padded, labels=targets)
    logits = ours(example.packed)
    close(logits, wanted.logits, VALUES)
    loss = nn.functional.cross_entropy(logits, targets)
    close(loss, wanted.loss, VALUES)
    compare_gradients(ours, theirs, (loss, wanted.loss), "sequence_classification")


def test_training_without_dropout_gives_transformers_gradients(matmul):
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "attn_implementation": "eager",
    }
    ours, theirs = pair_of(config, 0, **off)
    generator = torch.Generator().manual_seed(0)
    lengths = [37, 2, 64, 64, 11, 25, 50, 33]  # 286 rows: padded ones on the oneDNN path
    ids = [torch.randint(1, 60, (n,), generator=generator).tolist() for n in lengths]
    losses = backbone_losses(ours.train(), theirs.train(), Example(ids), select=False)
    compare_gradients(ours, theirs, losses, "backbone")


@torch.no_grad()
def test_sequences_longer_than_the_switch_to_sdpa(matmul):
    config = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 600,
        "attn_implementation": "eager",
    }
    ours, theirs = pair_of(config, 0)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 60, (n,), generator=generator).tolist() for n in (600, 560, 30, 512)]
    compare_values(ours, theirs, Example(ids))
