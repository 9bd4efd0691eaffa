"""`pretune prune`: a smaller model out of a trained one, without the parts that matter least."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from pretune.bundle.bundle import Bundle
from pretune.data.records import Records
from pretune.errors import RunError, note
from pretune.evaluation.examine import examine
from pretune.experiments.costs import FLOAT, count_flops
from pretune.export.cut_vocabulary import HeldBackText, UsedText, cut_vocabulary
from pretune.export.importance import Importance, importance_by_loss, importance_by_weights
from pretune.models.lora import adapters
from pretune.models.packed import is_int8
from pretune.models.pruned import (
    keep_layers,
    keep_neurons,
    prune_heads,
    transformer_layers,
)
from pretune.tasks.base import MakesExperience

#: What was removed, in the folder of the smaller model.
PRUNING_FILE = "pruning.json"
#: Tokens of a sequence for which FLOPs are given.
LENGTH = 128


@dataclass(frozen=True)
class PruningPlan:
    """What to remove; the parts are taken in this order.

    Attributes:
        layers: `top:N` without the N layers nearest to the output, `every-other` with the layers 0,
            2, 4, ..., or the numbers of the layers to keep, as `0,2,4`; None: all stay.
        heads: share of all attention heads to remove.
        ffn: share of the neurons of each feed-forward block to remove.
        vocab: the data whose tokens stay; none: all tokens stay.
    """

    layers: str | None = None
    heads: float = 0.0
    ffn: float = 0.0
    vocab: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, share in (("heads", self.heads), ("ffn", self.ffn)):
            if not 0 <= share <= 1:
                raise RunError(f"--{name} {share:g}: a share is from 0 to 1", "For example 0.5.")
        if self.layers is None and not self.heads and not self.ffn and not self.vocab:
            raise RunError(
                "nothing to remove",
                "Name something: --layers top:2, --heads 0.5, --ffn 0.5, --vocab train.tsv.",
            )


@dataclass(frozen=True)
class ModelSize:
    """What a model takes."""

    layers: int
    heads: int  # of all layers
    neurons: int  # of a feed-forward block
    tokens: int  # rows of the table of embeddings
    parameters: int
    megabytes: float  # of its weights in memory, in float32
    flops: int  # a token, in a text of `LENGTH` tokens
    metrics: dict[str, float]  # on the data, if any


@dataclass(frozen=True)
class PruningResult:
    """A model before and after."""

    before: ModelSize
    after: ModelSize
    measured_by: str  # what importance was measured by
    held_back: HeldBackText | None  # how text that was not seen fits a vocabulary that was cut
    best_by: str | None  # the metric that decides; None without data

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> PruningResult | None:
        """Read what `write` wrote; None where a folder has no such file, or a damaged one."""
        try:
            return TypeAdapter(cls).validate_json((folder / PRUNING_FILE).read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> None:
        """Write it into the folder of the smaller model, for its card."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2)
        (folder / PRUNING_FILE).write_text(text + "\n", encoding="utf-8")


def prune(
    bundle: Bundle,
    plan: PruningPlan,
    records: Records | None = None,
    *,
    used: UsedText | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> PruningResult:
    """Remove parts of a model, in place.

    Args:
        bundle: a Transformer of one stack, with a task where `records` are given.
        plan: what to remove.
        records: labelled, to measure what matters, and the model before and after. Without them
            the weights say what matters.
        used: what the model is to read, where its vocabulary is to be cut.
        device: where to compute.
        progress: called with the number of sequences done, and of all, in each pass over the data.

    Raises:
        CheckpointError: the model or its tokenizer is of a kind that cannot be pruned.
        RunError: the plan would leave nothing, or the model is in 8 bits.
        DataError: a record cannot be used.
    """
    check_prunable(bundle)

    def measure() -> ModelSize:
        return model_size(bundle, records, device, progress)

    def importance() -> Importance:
        if measured_by == "weights" or records is None:
            return importance_by_weights(bundle)
        return importance_by_loss(bundle, records, device=device, progress=progress)

    # What importance is measured by, where anything is chosen by it.
    measured_by = "weights"
    if records is not None and not isinstance(bundle.task, MakesExperience):
        measured_by = "loss"
    elif plan.heads or plan.ffn:
        why = "there are no labelled data" if records is None else "its loss needs whole rollouts"
        note(f"heads and neurons are chosen by the norms of their weights, as {why}")

    before, backbone = measure(), bundle.backbone
    # Each part by what matters in the model that the parts before left.
    if plan.layers is not None:
        keep_layers(backbone, kept_layers(plan.layers, len(backbone.layers)))
    if plan.heads:
        prune_heads(backbone, least_heads(importance().heads, plan.heads))
    if plan.ffn:
        keep_neurons(backbone, best_neurons(importance().neurons, plan.ffn))
    held_back = None if used is None else cut_vocabulary(bundle, used)
    best_by = None if records is None or bundle.task is None else bundle.task.best_by
    return PruningResult(before, measure(), measured_by, held_back, best_by)


def check_prunable(bundle: Bundle) -> None:
    """Refuse models that cannot be pruned, by name."""
    transformer_layers(bundle.backbone)
    if is_int8(bundle.model):
        raise RunError(
            f"{bundle.folder}: its weights are in 8 bits already",
            "Prune the model that it was made of, and quantize that.",
        )
    if adapters(bundle.model):
        raise RunError(
            "this model has adapters that are still apart from its weights",
            "Save it first: a checkpoint has them merged.",
        )


def kept_layers(chosen: str, count: int) -> list[int]:
    """The layers that stay, by `PruningPlan.layers` (Sajjad et al. 2020, arXiv:2004.03844).

    Raises:
        RunError: it names no such layers, none or all of them.
    """
    kept: list[int] | None = None
    if chosen == "every-other":
        kept = list(range(0, count, 2))
    elif chosen.startswith("top:") and chosen[4:].isdecimal():
        kept = list(range(count - min(int(chosen[4:]), count)))
    elif all(part.strip().isdecimal() for part in chosen.split(",")):
        kept = sorted({int(part) for part in chosen.split(",")})
    if kept is None or (kept and kept[-1] >= count):
        raise RunError(
            f"--layers {chosen}: the model has the layers 0 to {count - 1}",
            "top:2 removes the two nearest to the output, every-other keeps 0, 2, 4, ..., and "
            "numbers are the layers to keep: --layers 0,2,4.",
        )
    if not kept:
        raise RunError(f"--layers {chosen}: no layer would be left of {count}", "Keep at least 1.")
    if len(kept) == count:
        raise RunError(f"--layers {chosen}: keeps all {count} layers", "Leave --layers out.")
    return kept


def least_heads(importance: Sequence[torch.Tensor], share: float) -> dict[int, list[int]]:
    """The heads to remove: the least important of all layers; each layer keeps its best one.

    Args:
        importance: `[H]` for each layer.
        share: of all heads.

    Returns:
        layer -> numbers of heads.

    Raises:
        RunError: fewer heads than layers would be left, or all of them.
    """
    total = sum(map(len, importance))
    count, most = _share_of("--heads", share, total), total - len(importance)
    if count > most:
        raise RunError(
            f"--heads {share:g}: {count} of {total} heads, but each of {len(importance)} layers "
            "keeps at least one",
            f"Use at most {int(100 * most / total) / 100:g}."
            if most
            else "The model has one head a layer: remove something else.",
        )
    best = {(layer, int(scores.argmax())) for layer, scores in enumerate(importance)}
    every = [
        (float(s), layer, h) for layer, own in enumerate(importance) for h, s in enumerate(own)
    ]
    removed: dict[int, list[int]] = {}
    for _, layer, head in sorted(e for e in every if e[1:] not in best)[:count]:
        removed.setdefault(layer, []).append(head)
    return removed


def best_neurons(importance: Sequence[torch.Tensor], share: float) -> list[torch.Tensor]:
    """The neurons that stay: the most important ones of each layer, as many in each.

    Args:
        importance: `[I]` for each layer.
        share: of the neurons of a layer to remove.

    Raises:
        RunError: none would be left, or all of them.
    """
    width = len(importance[0])
    count = width - _share_of("--ffn", share, width)
    if count < 1:
        raise RunError(
            f"--ffn {share:g}: no neuron would be left of {width}", "Keep some: --ffn 0.5."
        )
    return [scores.topk(count).indices.sort().values for scores in importance]


def _share_of(option: str, share: float, total: int) -> int:
    """How many units a share of them is, which must be one at least."""
    count = round(share * total)
    if not count:
        raise RunError(
            f"{option} {share:g}: of {total} that is none",
            f"Leave it out, or remove one at least: {option} {1 / total:.2g}.",
        )
    return count


def model_size(
    bundle: Bundle,
    records: Records | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> ModelSize:
    """Measure a model: its parts, what it takes, and with labelled records how good it is."""
    layers, model = transformer_layers(bundle.backbone), bundle.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    metrics: dict[str, float] = {}
    if records is not None:
        metrics = examine(bundle, records, device=device, progress=progress).metrics
    return ModelSize(
        layers=len(layers),
        heads=sum(layer.attention.num_heads for layer in layers),
        neurons=bundle.backbone.config.size("intermediate_size"),
        tokens=bundle.backbone.config.size("vocab_size"),
        parameters=parameters,
        megabytes=parameters * FLOAT / 1e6,
        flops=count_flops(model, LENGTH).per_token,
        metrics=metrics,
    )
