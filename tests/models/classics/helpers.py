"""What the tests of the models before the Transformer share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.models.classics.common import ClassicLM
from pretune.models.classics.nnlm import NnlmConfig, NnlmModel
from pretune.models.classics.rnn import RnnConfig, RnnModel

NNLM = NnlmConfig(vocab_size=11, order=4, embedding_size=3, hidden_size=6, initializer_range=0.5)
RNN = RnnConfig(
    vocab_size=11, embedding_size=5, hidden_size=6, num_hidden_layers=3, initializer_range=0.5
)
SEQUENCES = [
    [1, 2, 3, 4, 5, 6, 7],
    [8],
    [9, 10, 0, 1],
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 3],
    [7, 7, 2, 7],
]


def build_nnlm(direct: bool = True, **sizes: Any) -> ClassicLM:
    """A window model, of which no parameter is zero."""
    torch.manual_seed(0)
    model = ClassicLM(NnlmModel(replace(NNLM, direct_connections=direct, **sizes))).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def build_rnn(cell: str, **sizes: Any) -> ClassicLM:
    """A recurrent model."""
    torch.manual_seed(0)
    return ClassicLM(RnnModel(replace(RNN, cell=cell, **sizes))).double()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def logits_of(model: nn.Module, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits of each sequence, all in one batch."""
    batch = PackedBatch.of(sequences)
    return list(torch.split(model(batch), list(batch.layout.lengths)))


def pieces(
    lengths: Sequence[int], cuts: Sequence[int]
) -> tuple[PackedBatch, PackedBatch, PackedBatch]:
    """Random sequences of these lengths: whole, up to the cuts, and from there on."""
    generator = torch.Generator().manual_seed(1)
    whole = [torch.randint(11, (n,), generator=generator).tolist() for n in lengths]
    return (
        PackedBatch.of(whole),
        PackedBatch.of([ids[:cut] for ids, cut in zip(whole, cuts, strict=True)]),
        PackedBatch.of([ids[cut:] for ids, cut in zip(whole, cuts, strict=True)]),
    )


def learn(model: Any, steps: int = 60) -> tuple[float, float]:
    """Train on a pattern; the loss afterwards, and the entropy of the tokens by themselves.

    Every sequence is a, b, a, b, ... with a and b drawn from eight tokens.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        pairs = torch.randint(8, (32, 2), generator=generator)
        batch = PackedBatch.of(pairs.repeat(1, 4).tolist())
        logits = torch.stack(torch.split(model(batch), list(batch.layout.lengths)))
        targets = batch.tokens.view(32, 8)[:, 1:]
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())

    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return loss().item(), float(torch.tensor(8.0).log())
