"""A linear-chain conditional random field (Lafferty et al. 2001; Lample et al. 2016, section 2.2).

    score(y) = start[y_1] + sum_t emission[t, y_t] + sum_t transitions[y_(t-1), y_t] + end[y_n]

and p(y) = exp(score(y)) / Z. Chains of different lengths lie end to end, without padding. The
algorithms walk along all chains at once, with the longest first: at step t, the chains that have a
word t are the first `counts[t]` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CrfWeights:
    """The scores of a chain of L kinds of labels, apart from its emissions."""

    transitions: Tensor  # `[L, L]`, from the label of the row to the label of the column
    start: Tensor  # `[L]`
    end: Tensor  # `[L]`

    def detached(self) -> CrfWeights:
        """The same weights, cut from the graph."""
        return CrfWeights(self.transitions.detach(), self.start.detach(), self.end.detach())

    def cpu(self) -> CrfWeights:
        """A copy on the CPU, in float32 and without a graph."""
        parts = (self.transitions, self.start, self.end)
        copies = (part.detach().to("cpu", torch.float32, copy=True) for part in parts)
        return CrfWeights(*copies)

    def only(self, follows: Tensor, starts: Tensor, ends: Tensor) -> CrfWeights:
        """Set to minus infinity what is not allowed.

        Args:
            follows: `[L, L]` bool: whether the label of the column may follow that of the row.
            starts: `[L]` bool: whether a label may be first.
            ends: `[L]` bool: whether a label may be last.
        """
        pairs = ((self.transitions, follows), (self.start, starts), (self.end, ends))
        return CrfWeights(*(w.masked_fill(~ok.to(w.device), -torch.inf) for w, ok in pairs))


@dataclass(frozen=True)
class Chains:
    """The words of packed chains, ordered by step."""

    order: Tensor  # `[C]`: the numbers of the chains that have words, longest first
    counts: tuple[int, ...]  # number of chains that have a word at each step
    rows: Tensor  # `[W]` int64: the word at each place of the new order
    backward: Tensor  # `[W]` int64: the same with every chain read from its end
    last: Tensor  # `[C]` int64: the last word of each chain, in the order of `order`

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Self:
        """Order chains of these lengths, which may be 0."""
        sizes = np.asarray(lengths, dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        order = np.argsort(-sizes, kind="stable")[: int((sizes > 0).sum())]
        first, last = starts[order], (starts + sizes - 1)[order]
        counts = [int((sizes > t).sum()) for t in range(int(sizes.max(initial=0)))]
        none = [np.empty(0, dtype=np.int64)]
        rows = np.concatenate([first[:n] + t for t, n in enumerate(counts)] or none)
        backward = np.concatenate([last[:n] - t for t, n in enumerate(counts)] or none)
        parts = (torch.from_numpy(part).to(device) for part in (order, rows, backward, last))
        of_chain, forth, back, ends = parts
        return cls(of_chain, tuple(counts), forth, back, ends)


def _scan(emissions: Tensor, rows: Tensor, chains: Chains, first: Tensor, steps: Tensor) -> Tensor:
    """The forward algorithm in log space (Rabiner 1989, section III.A).

    Args:
        emissions: `[W, L]`.
        rows: the words ordered by step, forward or backward.
        chains: of these words.
        first: `[C, L]` or `[L]`, added at the first word.
        steps: `[L, L]`, from the label of the row to the label of the column.

    Returns:
        `[W, L]`, in the order of the words: for each word and label, the log of the summed weights
        of all label sequences up to this word that end in this label.
    """
    at = torch.split(emissions[rows], list(chains.counts))
    alphas = [at[0] + first]
    # Chains that have ended drop out, as the longest come first.
    for step in at[1:]:
        before = alphas[-1][: len(step)]
        alphas.append(torch.logsumexp(before[:, :, None] + steps, 1) + step)
    # From the order of steps back to the order of words.
    back = torch.empty_like(rows)
    back[rows] = torch.arange(len(rows), device=rows.device)
    return torch.cat(alphas)[back]


def log_likelihood(
    emissions: Tensor,
    labels: Tensor,
    lengths: Sequence[int],
    weights: CrfWeights,
    begins: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """Log-probability of the labels of each chain, `[C]`; 0 for a chain without words.

    Args:
        emissions: `[W, L]` of any floating type; computed in at least float32.
        labels: `[W]` int64.
        lengths: number of words of each of the C chains; their sum is W.
        weights: of the CRF.
        begins: `[C]` bool: whether `start` counts, as a part of a sentence may begin inside it.
        ends: `[C]` bool: whether `end` counts.
    """
    emissions = emissions.to(torch.promote_types(emissions.dtype, torch.float32))
    given = weights.transitions, weights.start, weights.end
    transitions, start, end = (weight.to(emissions.dtype) for weight in given)
    total = emissions.new_zeros(len(lengths))
    if len(emissions) == 0:
        return total + 0.0 * (transitions.sum() + start.sum() + end.sum())
    # log Z, by the forward algorithm.
    chains = Chains.of(lengths, emissions.device)
    ones = torch.ones(len(lengths), dtype=torch.bool, device=emissions.device)
    opened = (ones if begins is None else begins)[chains.order].to(emissions.dtype)[:, None]
    closed = (ones if ends is None else ends)[chains.order].to(emissions.dtype)[:, None]
    alphas = _scan(emissions, chains.rows, chains, opened * start, transitions)
    partition = torch.logsumexp(alphas[chains.last] + closed * end, 1)
    # The score of the labels: each word's emission, and the transition from the word before.
    chain = torch.repeat_interleave(
        torch.tensor(lengths, device=labels.device), output_size=len(labels)
    )
    step = transitions[labels[:-1], labels[1:]] * (chain[1:] == chain[:-1])
    each = emissions.gather(1, labels[:, None])[:, 0] + torch.cat([step.new_zeros(1), step])
    score = total.index_add(0, chain, each)[chains.order]
    heads = chains.last - torch.tensor(lengths, device=labels.device)[chains.order] + 1
    score = score + opened[:, 0] * start[labels[heads]] + closed[:, 0] * end[labels[chains.last]]
    return total.index_add(0, chains.order, score - partition)


def marginals(emissions: Tensor, lengths: Sequence[int], weights: CrfWeights) -> Tensor:
    """The marginal probability of each label of each word, `[W, L]` (forward-backward)."""
    if len(emissions) == 0:
        return emissions
    emissions = emissions.float()
    chains = Chains.of(lengths, emissions.device)
    # Both directions contain the emission of the word itself, which counts once.
    forth = _scan(emissions, chains.rows, chains, weights.start, weights.transitions)
    back = _scan(emissions, chains.backward, chains, weights.end, weights.transitions.t())
    return (forth + back - emissions).softmax(-1)


def viterbi(emissions: Tensor, lengths: Sequence[int], weights: CrfWeights) -> Tensor:
    """The labels of each chain that have the highest score, `[W]` int64 (Viterbi 1967)."""
    labels = torch.empty(len(emissions), dtype=torch.int64, device=emissions.device)
    if len(emissions) == 0:
        return labels
    # Forward: the best score that ends in each label, and the label before it.
    chains = Chains.of(lengths, emissions.device)
    at = torch.split(emissions.float()[chains.rows], list(chains.counts))
    best = at[0] + weights.start
    final = best.new_empty(len(chains.order), best.shape[1])
    from_where = []
    for step in at[1:]:
        final[len(step) : len(best)] = best[len(step) :]
        before = best[: len(step)]
        value, back = (before[:, :, None] + weights.transitions).max(1)
        from_where.append(back)
        best = value + step
    final[: len(best)] = best
    now = (final + weights.end).argmax(1)
    # Backward: each chain joins at the step of its last word.
    steps = torch.split(chains.rows, list(chains.counts))
    for number in range(len(steps) - 1, -1, -1):
        count = chains.counts[number]
        labels[steps[number]] = now[:count]
        if number:
            past = from_where[number - 1].gather(1, now[:count, None])[:, 0]
            now = torch.cat([past, now[count:]])
    return labels


class Crf(nn.Module):
    """The weights of a CRF as parameters. They start at 0, where they change nothing.

    Args:
        num_labels: L.
        rate: learning rate as a multiple of the model's: the weights are few, start at 0, and need
            a larger scale than those of a Transformer.
    """

    def __init__(self, num_labels: int, rate: float = 1.0) -> None:
        super().__init__()
        self.rate = rate
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))
        self.start = nn.Parameter(torch.zeros(num_labels))
        self.end = nn.Parameter(torch.zeros(num_labels))

    @property
    def weights(self) -> CrfWeights:
        """All three parameters."""
        return CrfWeights(self.transitions, self.start, self.end)
