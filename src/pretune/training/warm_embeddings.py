"""Token embeddings that start from what stands beside what, instead of at random.

A masked language model first learns which words stand in like places, which takes it thousands of
updates and is hardly more than counting. Here it is counted: a truncated singular value
decomposition of the positive pointwise mutual information of tokens and their neighbours, which is
what skip-gram with negative sampling approaches (Levy and Goldberg 2014, "Neural word embedding as
implicit matrix factorization", section 3). Neighbours are weighted by distance, contexts by their
frequency to the power 0.75, and singular values by their square root, as Levy, Goldberg and Dagan
2015 ("Improving distributional similarity with lessons learned from word embeddings", sections 3
and 4) found best.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle
from pretune.data.arrays import Array
from pretune.data.batch import Features
from pretune.errors import RunError
from pretune.models.backbone import backbone_of
from pretune.training.distributed import World
from pretune.training.logging import Reporter

#: How far a neighbour is at most, in tokens.
WINDOW = 5
#: Contexts are as frequent as this power of their count says (Mikolov et al. 2013).
SMOOTHING = 0.75
#: The embeddings' root mean square: larger than usual (0.02), so that the first updates do not
#: wash them out.
SCALE = 0.05
#: At most so many numbers in the table of counts (256 MiB): a large vocabulary has fewer contexts.
CELLS = 2**26
#: At most so many tokens are read, evenly from all features.
TOKENS = 50_000_000
#: Tokens that are counted together, and features that are packed together.
_TOGETHER, _FEATURES = 2_000_000, 4096
#: Of the randomized decomposition (Halko et al. 2011, algorithm 4.4): dimensions beyond those
#: asked for, and passes over the table.
_BEYOND, _PASSES = 32, 3

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Neighbours:
    """How often tokens stand beside others.

    Attributes:
        counts: `[V, C]`; a neighbour at distance d counts `(WINDOW + 1 - d) / WINDOW`.
        tokens: how many were read.
    """

    counts: Table
    tokens: int


def warm_embeddings(bundle: Bundle, features: Features, world: World, reporter: Reporter) -> None:
    """Give a model with random weights token embeddings from its training data, in place.

    Tokens that the data lack, and special ones, keep their random ones, at the same scale.

    Raises:
        RunError: the weights are not random, the model has no such embeddings, or it has more
            dimensions than tokens.
    """
    report = bundle.report
    if report is not None and not report.random:
        raise RunError(
            f"model.embeddings=neighbours: the embeddings of {report.source} were trained already",
            "Leave it out, or take a size with random weights (model.from=bert-small).",
        )
    weight = _token_embeddings(bundle.model)
    rows, size = weight.shape
    added = bundle.tokenizer.engine.get_added_tokens_decoder()
    special = [number for number, token in added.items() if token.special]

    def made() -> Table:
        reporter.say("token embeddings: counting neighbours in the training data")
        found = neighbours(sampled(features), rows, special)
        known = int((found.counts.sum(1) > 0).sum())
        reporter.say(
            f"token embeddings: {size} dimensions from the neighbours of {found.tokens:,} tokens, "
            f"for {known:,} of {rows:,} entries of the vocabulary"
        )
        return factorized(ppmi(found.counts), size)

    # One process computes: others might round otherwise.
    vectors = torch.from_numpy(world.decided(made))
    counted = vectors.abs().sum(1) > 0
    vectors[counted] -= vectors[counted].mean(0)
    with torch.no_grad():
        random = weight.detach().float().cpu()
        warm = _scaled(vectors, counted)
        weight.copy_(torch.where(counted[:, None], warm, _scaled(random, ~counted)))


def _token_embeddings(model: nn.Module) -> Tensor:
    try:
        weight: Tensor = backbone_of(model).embeddings.tokens.weight
    except AttributeError:
        raise RunError(
            "model.embeddings: this model has no table of token embeddings of the usual kind",
            "Leave model.embeddings out: its weights start at random.",
        ) from None
    rows, size = weight.shape
    if size >= rows:
        raise RunError(
            f"model.embeddings=neighbours: {size} dimensions for {rows} tokens",
            "It takes more tokens than dimensions: leave it out, or take a larger vocabulary.",
        )
    return weight


def _scaled(vectors: Tensor, which: Tensor) -> Tensor:
    """The same with a root mean square of `SCALE` over some of the rows."""
    spread = vectors[which].square().mean().sqrt() if which.any() else torch.tensor(1.0)
    return vectors * (SCALE / spread.clamp_min(1e-12))


def sampled(features: Features, most: int = TOKENS) -> Iterator[tuple[Array, Array]]:
    """Tokens `[T]` of training sequences, and the number of each one's sequence `[T]`.

    All features if they have at most `most` tokens, else some at even distances.
    """
    lengths = features.lengths
    step = max(1, -(-int(lengths.sum()) // most))
    chosen = np.arange(0, len(lengths), step)
    for start in range(0, len(chosen), _FEATURES):
        batch = features.batch(chosen[start : start + _FEATURES], sort=False)
        sizes = np.diff(batch.cu_seqlens.numpy())
        yield batch.tokens.numpy(), np.repeat(np.arange(len(sizes)), sizes)


def neighbours(
    sequences: Iterator[tuple[Array, Array]], vocab_size: int, special: Collection[int] = ()
) -> Neighbours:
    """Count how often tokens stand near others in the same sequence.

    Contexts are the `C` most frequent tokens, all where the table has room for them. Special
    tokens have no neighbours and are none, but take up their place.
    """
    width = min(vocab_size, max(1, CELLS // vocab_size))
    chunks = list(_joined(sequences))
    frequency = np.zeros(vocab_size, dtype=np.int64)
    for tokens, _ in chunks:
        frequency += np.bincount(tokens, minlength=vocab_size)
    frequency[list(special)] = 0
    # Each token's number as a context; those that are none have the last one, which is cut off.
    column = np.full(vocab_size, width, dtype=np.int64)
    column[np.argsort(-frequency, kind="stable")[:width]] = np.arange(width)
    column[list(special)] = width
    usual = np.ones(vocab_size, dtype=bool)
    usual[list(special)] = False
    counts = np.zeros((vocab_size, width + 1), dtype=np.float32)
    for tokens, sequence in chunks:
        places: list[Array] = []
        weights: list[Array] = []
        for distance in range(1, WINDOW + 1):
            same = sequence[:-distance] == sequence[distance:]
            left, right = tokens[:-distance][same], tokens[distance:][same]
            for one, other in ((left, right), (right, left)):
                places.append((one.astype(np.int64) * (width + 1) + column[other])[usual[one]])
                weights.append(np.full(len(places[-1]), (WINDOW + 1 - distance) / WINDOW))
        # All at once, as each call goes through the whole table.
        found = np.bincount(np.concatenate(places), np.concatenate(weights), counts.size)
        counts += found.reshape(counts.shape)
    return Neighbours(counts[:, :width], int(frequency.sum()))


def _joined(sequences: Iterator[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
    """Chunks of about `_TOGETHER` tokens: counting takes a pass over the table for each."""
    held: list[tuple[Array, Array]] = []
    total = numbered = 0
    for tokens, sequence in sequences:
        # Narrow numbers: all that is sampled is held, eight bytes a token.
        held.append((tokens.astype(np.int32), (sequence + numbered).astype(np.int32)))
        # The numbers of a chunk's sequences differ, whatever batch they come in.
        numbered += len(tokens)
        total += len(tokens)
        if total >= _TOGETHER:
            yield _whole(held)
            held, total, numbered = [], 0, 0
    if held:
        yield _whole(held)


def _whole(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    tokens, sequences = zip(*parts, strict=True)
    return np.concatenate(tokens), np.concatenate(sequences)


def ppmi(counts: Table) -> Table:
    """`[V, C]`: max(0, log p(w, c) / (p(w) p'(c))) with smoothed contexts p' (Levy et al. 2015).

    Rows without a count are 0. The counts are overwritten.
    """
    rows = counts.sum(1, dtype=np.float64)
    contexts = counts.sum(0, dtype=np.float64) ** SMOOTHING
    contexts /= contexts.sum() or 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        # p(w, c) / (p(w) p'(c)) = count / (count of w) / p'(c): the sum of all cancels.
        counts /= np.maximum(rows, 1e-30).astype(np.float32)[:, None]
        counts /= np.maximum(contexts, 1e-30).astype(np.float32)
        np.log(counts, out=counts)
    np.maximum(counts, 0, out=counts)
    return counts


def factorized(table: Table, size: int) -> Table:
    """`[V, size]`: the left singular vectors of a table times the roots of its singular values.

    By random projections (Halko et al. 2011), always the same ones. Fewer contexts than
    dimensions leave the last ones 0.
    """
    height, width = table.shape
    random = np.random.default_rng(0)
    thin = min(size + _BEYOND, width, height)
    basis = table @ random.standard_normal((width, thin)).astype(np.float32)
    for _ in range(_PASSES):
        basis = table @ (table.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    left, values, _ = np.linalg.svd(basis.T @ table, full_matrices=False)
    kept = min(size, thin)
    vectors: Table = np.zeros((height, size), dtype=np.float32)
    vectors[:, :kept] = (basis @ left[:, :kept]) * np.sqrt(values[:kept])
    # Rounding leaves rows that had nothing with a little.
    vectors[table.sum(1) == 0] = 0
    return vectors
