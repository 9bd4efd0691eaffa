"""How much each token of an example contributes to its loss or its answer: integrated gradients.

Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks" (arXiv:1703.01365).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from pretune.bundle.bundle import Bundle
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.data.records import Records
from pretune.decoding.text_stream import token_texts
from pretune.evaluation.examine import Examined, batch_of
from pretune.inference.predict import TokenizedRecords, task_of
from pretune.tasks.base import AnyTask
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.sentences import SentenceTask
from pretune.text.notebook import Displayed
from pretune.tokenizers.tokenizer import Tokenizer

#: Attention maps of more tokens cannot be read.
MAX_MAP_TOKENS = 64
#: Points between the baseline and the text where a gradient is taken: as many as are needed.
POINTS = (8, 32)
#: By how much attributions may miss the difference without more points, as a share of them all.
TOLERANCE = 0.01
#: The special tokens whose embedding is the baseline: the first that a vocabulary has.
BASELINES = ("mask_token", "pad_token")

Outcome = TypeVar("Outcome")
#: A number with derivatives: of the outputs, the batch, and the outputs for the text as it is.
Value = Callable[[Any, PackedBatch, Any], Tensor]


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of a number.

    The attributions add up to the number less its baseline, up to the error of the integral.
    """

    scores: Tensor  # `[T]` float32, of each token; 0 for special tokens
    value: float  # the number for the text
    baseline: float  # the number where a mask stands for each token


@dataclass(frozen=True)
class Explained(Displayed):
    """Attributions and attention of one sequence.

    Attributes:
        tokens: the entries of the vocabulary.
        texts: what each of them stands for: see `token_texts`.
        attributions: `[T]` in nats; above 0: raises the loss, or the certainty.
        value: the loss, or how sure the model is of its answer.
        baseline: the same without the text: the attributions explain the difference.
        attention: `[L, T, T]`, the mean over heads; None: no attention, or too long.
    """

    tokens: tuple[str, ...]
    texts: tuple[str, ...]
    attributions: tuple[float, ...]
    value: float
    baseline: float
    attention: Tensor | None = None

    @override
    def table_rows(self) -> list[dict[str, Any]]:
        """List the tokens, each with its attribution."""
        pairs = zip(self.texts, self.attributions, strict=True)
        return [{"token": text, "attribution": value} for text, value in pairs]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        maps = self.attention
        return {
            "tokens": list(self.tokens),
            "texts": list(self.texts),
            "attributions": list(self.attributions),
            "value": self.value,
            "baseline": self.baseline,
            "attention": None if maps is None else maps.tolist(),
        }


#: What there is to say of a sequence that the model does not read.
NOTHING = Explained((), (), (), 0.0, 0.0)


def explain(examined: Examined, number: int) -> Explained:
    """Explain the loss of an example; of several sequences the one with the highest loss.

    The sequence is read by itself, also where the evaluation carried a state to it.
    """
    bundle, task = examined.bundle, examined.task
    device = next(bundle.model.eval().parameters()).device
    worst = max(examined.examples[number].features, key=examined.losses.__getitem__)
    batch = batch_of(task, examined.features, worst).to(device)
    attribution = finished(integrated_gradients(bundle, batch, loss_of(task)))
    places = _places(bundle, examined.records, examined.examples[number].record)
    return _explained(bundle, batch, attribution, _attention(bundle, batch), places)


def explain_answer(
    bundle: Bundle,
    features: FeatureSet,
    which: int,
    *,
    attention: bool = False,
    places: Sequence[int] | None = None,
) -> Generator[None, None, Explained]:
    """Explain the answer to a sequence, whose right answer need not be known.

    A generator that pauses after each pass through the model, and returns what is explained: how
    sure the model is of its answer. What is above 0 speaks for it.

    Args:
        bundle: of a task that `HasCertainty`.
        features: without targets.
        which: the number of one of them.
        attention: whether to return attention maps too.
        places: of a text in windows, which share tokens: which token of the text each one is. The
            attributions of a token are added up.
    """
    task, device = task_of(bundle), next(bundle.model.eval().parameters()).device
    assert isinstance(task, HasCertainty)  # noqa: S101 - the caller checked
    batch = features.batch(np.array([which])).to(device)
    attribution = yield from integrated_gradients(bundle, batch, task.certainty)
    maps = _attention(bundle, batch) if attention else None
    return _explained(bundle, batch, attribution, maps, places)


def explain_records(
    bundle: Bundle, part: TokenizedRecords, *, attention: bool = False
) -> Generator[None, None, list[Explained]]:
    """Explain the answer to each of some records, in their order.

    Of several sequences of a record, it is the one that the model is surest of; a record that the
    model does not read has `NOTHING`. Pauses after each pass, as `explain_answer` does.
    """
    best: dict[int, Explained] = {}
    records = [] if part.features is None else part.features.records.tolist()
    for number, record in enumerate(records):
        assert part.features is not None  # noqa: S101 - for the type checker
        row = part.asked[record]
        places = _places(bundle, part.records, row)
        own = yield from explain_answer(
            bundle, part.features, number, attention=attention, places=places
        )
        if row not in best or own.value > best[row].value:
            best[row] = own
        yield
    return [best.get(row, NOTHING) for row in range(len(part.records))]


def loss_of(task: AnyTask) -> Value:
    """The loss of a task as a number to explain."""
    return lambda outputs, batch, _: task.loss(outputs, batch).sum


def finished(steps: Generator[None, None, Outcome]) -> Outcome:
    """Run all steps, and return what they lead to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome


def integrated_gradients(
    bundle: Bundle, batch: PackedBatch, value: Value
) -> Generator[None, None, Attribution]:
    """Attribute a number to the tokens of one sequence, pausing after each pass.

    A token's attribution is (x - x') · ∫₀¹ ∂F(x' + a (x - x')) / ∂x da (equation 1), where x is its
    embedding in the vocabulary and x' that of the mask (else of padding, else 0). Special tokens
    keep their embeddings and get 0, positions and segments are as they are. The attributions add up
    to F(x) - F(x') (Completeness, proposition 1).

    The integral is taken at the nodes of Gauss and Legendre: at 8, and at 32 where 8 miss the
    difference by more than `TOLERANCE` of the sum of the absolute attributions.

    Args:
        bundle: the model, in evaluation mode.
        batch: one sequence.
        value: F, of the outputs, the batch and the outputs for the text as it is.
    """
    # What F is about, such as the answer, is that of the text at every point.
    with torch.no_grad():
        outputs = task_of(bundle).forward(bundle.model, batch)
        whole = float(value(outputs, batch, outputs))
    yield
    path = _Path(bundle, batch, lambda own, given: value(own, given, outputs))
    baseline, _ = path.at(0.0)
    yield
    difference, best = whole - baseline, torch.zeros(batch.num_tokens)
    for count in POINTS if path.reads else ():
        total = torch.zeros(())
        for node, weight in zip(*np.polynomial.legendre.leggauss(count), strict=True):
            # The nodes and weights are those of -1 to 1.
            _, slopes = path.at((float(node) + 1) / 2)
            total = total + slopes * (float(weight) / 2)
            yield
        best = total
        gap = abs(float(total.sum()) - difference)
        if gap <= TOLERANCE * float(total.abs().sum()):
            break
    return Attribution(_by_token(best), whole, baseline)


class _Path:
    """The straight line from the baseline to the embeddings of a sequence.

    Attributes:
        reads: whether the number depends on any embedding; known after the first point.
    """

    def __init__(
        self, bundle: Bundle, batch: PackedBatch, value: Callable[[Any, PackedBatch], Tensor]
    ) -> None:
        self._bundle, self._batch, self._value = bundle, batch, value
        embeddings, tokenizer = bundle.backbone.embeddings, bundle.tokenizer
        # For a translation two tables, of the source and of what is written.
        self._tables: list[tuple[nn.Module, Tokenizer]] = [(embeddings.tokens, tokenizer)]
        if (targets := getattr(embeddings, "targets", None)) is not None:
            self._tables.append((targets, tokenizer.written))
        self.reads = True

    def at(self, share: float) -> tuple[float, Tensor]:
        """Return the number at a point, and how it changes there with the share of each token.

        Args:
            share: 0 at the baseline, 1 at the text.

        Returns:
            the number, and `[T]` or, where a token is looked up several times, `[T, n]` float32.
        """
        # In evaluation mode cuDNN's recurrent layers have no gradient.
        plain = torch.backends.cudnn.flags(enabled=False)
        with torch.enable_grad(), plain, self._moved(share) as lookups:
            outputs = task_of(self._bundle).forward(self._bundle.model, self._batch)
            value = self._value(outputs, self._batch)
            points = [point for point, _ in lookups]
            self.reads = value.requires_grad and bool(points)
            if not self.reads:  # without a reply a prompt has no loss
                return float(value.detach()), torch.zeros(self._batch.num_tokens)
            # For a translation the source, then the target; an unused lookup has no gradient.
            gradients = torch.autograd.grad(value, points, allow_unused=True)
        parts = [
            (gradient.float() * way.float()).sum(-1).cpu()
            for gradient, (_, way) in zip(gradients, lookups, strict=True)
            if gradient is not None
        ]
        # Every token is looked up once, or once by each of two models that read the text: of a
        # generator and what judges its words, which may share a table, both shares count.
        scores = torch.cat(parts)
        scores = scores.view(-1, self._batch.num_tokens, *scores.shape[1:]).sum(0)
        return float(value.detach()), scores

    @contextmanager
    def _moved(self, share: float) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Let lookups give points of the path; collect each with its way from the baseline."""
        lookups: list[tuple[Tensor, Tensor]] = []

        def mover(tokenizer: Tokenizer) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            # An unknown word is a part of the text.
            special = {
                tokenizer.special_id(name) for name in tokenizer.special.keys() - {"unk_token"}
            }
            known = torch.tensor([number for number in special if number is not None])
            ids = (tokenizer.special_id(name) for name in BASELINES)
            baseline = next((number for number in ids if number is not None), None)

            def move(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
                (tokens,), start = inputs, torch.zeros_like(output)
                if baseline is not None:
                    start = module.forward(torch.full_like(tokens, baseline))
                kept = torch.isin(tokens, known.to(tokens))[..., None]
                way = torch.where(kept, 0, output.detach() - start.detach())
                point = (output.detach() - (1 - share) * way).requires_grad_()
                lookups.append((point, way))
                return point

            return move

        handles = [table.register_forward_hook(mover(own)) for table, own in self._tables]
        try:
            yield lookups
        finally:
            for handle in handles:
                handle.remove()


def _by_token(scores: Tensor) -> Tensor:
    """Return a figure for each token, `[T]`."""
    if scores.dim() < 2:
        return scores
    # An NNLM looks up the last n tokens of each position, oldest first: sum a token's n shares.
    each = [F.pad(scores[n:, -1 - n], (0, n)) for n in range(min(scores.shape))]
    return torch.stack(each).sum(0)


def _places(bundle: Bundle, records: Records, row: int) -> list[int] | None:
    """Return which token of its text each token of a record is; None where it is one sequence."""
    task = task_of(bundle)
    if not isinstance(task, SentenceTask):
        return None
    return task.places(records, row, bundle.tokenizer)


def _explained(
    bundle: Bundle,
    batch: PackedBatch,
    attribution: Attribution,
    attention: Tensor | None,
    places: Sequence[int] | None,
) -> Explained:
    ids, scores = batch.tokens.tolist(), attribution.scores.tolist()
    # A token that two windows share stands once, with what it does in both.
    if places is not None:
        token_at, sums = dict(zip(places, ids, strict=True)), dict.fromkeys(sorted(places), 0.0)
        for place, score in zip(places, scores, strict=True):
            sums[place] += score
        ids, scores = [token_at[place] for place in sums], [*sums.values()]
    return Explained(
        tuple(bundle.tokenizer.tokens(ids)),
        tuple(token_texts(bundle.tokenizer, ids)),
        tuple(scores),
        attribution.value,
        attribution.baseline,
        attention,
    )


def _attention(bundle: Bundle, batch: PackedBatch) -> Tensor | None:
    """Return the maps of `Explained.attention`."""
    layers = bundle.backbone.layers
    if not len(layers) or batch.num_tokens > MAX_MAP_TOKENS or batch.num_sequences > 1:
        return None
    if not all(hasattr(layer, "attention_maps") for layer in layers):
        return None
    with torch.inference_mode():
        maps = bundle.backbone(batch, output_attentions=True).attentions
    # Each is a list of [heads, T, T], one a sequence.
    return torch.stack([layer[0].float().mean(0).cpu() for layer in maps])
