"""A task that also learns from a teacher, whatever else it is.

Knowledge distillation (Hinton et al. 2015; of Transformers Sanh et al. 2019). What a teacher gives
becomes targets of a batch: of the features, where it was computed before training, or of each batch
as it is drawn. The loss is

    soft * T^2 * KL(teacher || student) + labels * loss of the task
        + hidden * (1 - cos of the last hidden states) + relations * MiniLM's KL of relations
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Features, PackedBatch
from pretune.data.records import Records
from pretune.models.backbone import Backbone, backbone_of
from pretune.models.heads.language import LanguageModelHead
from pretune.models.heads.vocabulary import CHUNK_BYTES, SoftTargets
from pretune.tasks.base import AnyTask, DrawsAnew, Loss, Metrics
from pretune.tasks.distillation.hidden import (
    Inside,
    cosine_distances,
    relation_distances,
    watched,
)
from pretune.tasks.distillation.teachable import Teachable, TeachableRecord, TeachableTokens

#: Targets that come from the teacher: its probabilities, the tokens they are of, its last hidden
#: states, and the queries, keys and values of its last layer.
SOFT, SOFT_IDS, HIDDEN, QKV = "teacher", "teacher_ids", "teacher_hidden", "teacher_qkv"


@dataclass(frozen=True)
class Teaching:
    """What is learned from a teacher, with the weights of the parts of the loss.

    Attributes:
        temperature: T, which divides the logits of both.
        soft: of the teacher's distributions.
        labels: of the task's own loss.
        hidden: of the last hidden states.
        relations: of the relations between tokens in the last layer.
        top_k: how many tokens of a vocabulary keep a probability of their own; None: all.
    """

    temperature: float = 2.0
    soft: float = 0.5
    labels: float = 0.5
    hidden: float = 0.0
    relations: float = 0.0
    top_k: int | None = 64

    @property
    def looks_inside(self) -> bool:
        """Whether more than a teacher's outputs is learned."""
        return self.hidden > 0 or self.relations > 0


@dataclass(frozen=True)
class Teacher:
    """A frozen model that a student learns from.

    Attributes:
        model: in evaluation mode; without a head where its outputs are not learned.
        task: of the model; None where its outputs are not learned.
        order: where its outputs have another order: the place of each of the student's.
    """

    model: nn.Module
    task: AnyTask | None
    order: tuple[int, ...] | None = None

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        return backbone_of(self.model)


class Taught(DrawsAnew):
    """What `taught` puts before a task: learning from a teacher.

    Attributes:
        plain: the task without a teacher.
        teaching: what is learned; None before that is known: then it is the plain task.
        live: adds a teacher's targets to each batch; None where features have them.
        blind: whether no record of an evaluation has a label: then only the teacher is compared
            with, and the loss picks the best checkpoint.
        known_labels: the teacher's, which are the student's where the data have only some of them.
    """

    plain: ClassVar[type[AnyTask]]
    teaching: Teaching | None = None
    live: Callable[[PackedBatch], PackedBatch] | None = None
    blind: bool = False
    known_labels: Sequence[str] | None = None
    _inside: Inside | None = None

    @property
    def _own(self) -> Any:
        """This task, whose class is made of `Taught` and `plain`."""
        return self

    # Records may lack their labels.

    def fit(self, records: Records) -> None:
        """Learn from the records with labels; a task that knows its teacher's needs none."""
        labelled = self.labelled(records)
        if len(labelled) == len(records):
            self.plain.fit(self._own, records)
        elif labelled:
            self.plain.fit(self._own, records.take(labelled))
        known, own = self.known_labels, getattr(self, "labels", None)
        if known is not None and own is not None and {*own} < {*known}:
            self.labels = list(known)

    def without_labels(self) -> None:
        """Note that no record of the evaluations has a label."""
        self.blind, self.best_by = True, "loss"

    def labelled(self, records: Records) -> list[int]:
        """Return the rows of the records that have a label; those of most tasks must have one."""
        if not isinstance(self, TeachableRecord):
            return list(range(len(records)))
        return [row for row in range(len(records)) if self.has_label(records, row)]

    def remarks(self, records: Records) -> Iterable[str]:
        """Yield the task's own lines about records with labels, and how many have none."""
        labelled = self.labelled(records)
        if labelled:
            yield from self.plain.remarks(self._own, records.take(labelled))
        if not labelled:
            yield f"none of {len(records):,} records has a label: all is learned from the teacher"
        elif len(labelled) < len(records):
            without = len(records) - len(labelled)
            yield (
                f"{without:,} of {len(records):,} records have no label, and are learned from the "
                "teacher alone"
            )

    def strata(self, records: Records) -> Any:
        """Return labels as the plain task does; None where a record has none."""
        whole = len(self.labelled(records)) == len(records)
        return self.plain.strata(self._own, records) if whole else None

    # What is compared with the teacher

    @override
    def augment(self, batch: PackedBatch, seed: int, epoch: int) -> PackedBatch:
        """Draw what the plain task draws; then ask a teacher that is asked batch by batch."""
        if issubclass(self.plain, DrawsAnew):
            batch = self.plain.augment(self._own, batch, seed, epoch)
        return batch if self.live is None else self.live(batch)

    def forward(self, model: nn.Module, batch: PackedBatch, **more: Any) -> Any:
        """Run the model as the plain task does; `loss` compares what it gives."""
        how, given = self.teaching, batch.targets
        if how is not None and isinstance(self, TeachableTokens) and SOFT in given:
            more["soft"] = self._soft_targets(how, batch)
        if HIDDEN not in given and QKV not in given:
            return self.plain.forward(self._own, model, batch, **more)
        # Several processes train a wrapped model.
        whole = getattr(model, "module", model)
        with watched(backbone_of(whole)) as self._inside:
            return self.plain.forward(self._own, model, batch, **more)

    def _soft_targets(self, how: Teaching, batch: PackedBatch) -> SoftTargets:
        probs, ids = batch.targets[SOFT], batch.targets.get(SOFT_IDS)
        select = cast(TeachableTokens, self).scored_tokens(batch)
        # Kept ones are of all tokens.
        if select is not None and len(probs) != len(select.rows):
            probs, ids = probs[select.rows], None if ids is None else ids[select.rows]
        # Kept ones were rounded.
        probs = probs.float()
        probs = probs / probs.sum(-1, keepdim=True)
        ids = None if ids is None else ids.long()
        return SoftTargets(probs, ids, how.temperature, how.soft, how.labels)

    def loss(self, outputs: Any, batch: PackedBatch) -> Loss:
        """Compute the weighted sum; its parts, without weights, are means over the same terms.

        `label_loss`: of the task; `teacher_kl`: the divergence at the temperature, or of numbers
        the squared difference; `teacher_agreement`: how often both give the same answer (of token
        by token only in evaluations); `hidden_loss`, `relation_loss`. What lies inside a sequence
        counts once for each of its terms.
        """
        own, how = self.plain.loss(self._own, outputs, batch), self.teaching
        if how is None:
            return own
        total, count, parts = how.labels * own.sum, own.count, {"label_loss": own.sum.detach()}
        if SOFT in batch.targets and isinstance(self, TeachableTokens):
            # The scores have the weights in them; what a task adds to them has none yet.
            scores = self.token_scores(outputs)
            total, parts = scores.sum, {"label_loss": scores.cross_entropy}
            if own.sum is not scores.sum:
                more = own.sum - scores.sum
                total = total + how.labels * more
                parts["label_loss"] = scores.cross_entropy + more.detach()
            assert scores.divergence is not None  # noqa: S101 - soft targets were given
            parts["teacher_kl"] = scores.divergence
            if scores.agreeing >= 0:
                parts["teacher_agreement"] = torch.tensor(float(scores.agreeing))
        elif SOFT in batch.targets:
            task = cast(Teachable, self)
            soft = batch.targets[SOFT].float()
            compared = task.compare(outputs, soft, batch, how.temperature)
            far = compared.divergence.sum()
            total, count = total + how.soft * compared.scale * far, len(compared.divergence)
            parts |= {"teacher_kl": far.detach(), "teacher_agreement": compared.agreeing.sum()}
        inner = self._inner_losses(batch)
        for weight, name in ((how.hidden, "hidden_loss"), (how.relations, "relation_loss")):
            if name in inner:
                total, parts[name] = total + weight * inner[name], inner[name].detach()
        return Loss(total, count, {**own.parts, **parts})

    def _inner_losses(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Compare what lies inside both models, summed over the terms of each sequence."""
        inside, self._inside = self._inside, None
        if inside is None or inside.hidden is None or inside.qkv is None:
            return {}
        terms, losses = cast(Teachable, self).terms(batch), {}
        if (hidden := batch.targets.get(HIDDEN)) is not None:
            losses["hidden_loss"] = cosine_distances(inside.hidden, hidden, batch) @ terms
        if (qkv := batch.targets.get(QKV)) is not None:
            distances = relation_distances(
                *(inside.qkv, qkv, inside.heads, batch.layout), causal=inside.causal
            )
            losses["relation_loss"] = distances @ terms
        return losses

    # Evaluation

    def metrics(self, features: Features | None = None) -> Metrics:
        """Begin an evaluation of the plain task; without a label in it, one without figures."""
        own = self.plain.metrics(self._own, features)
        return WithoutFigures() if self.blind else own

    def calibrate(self, metrics: Any) -> None:
        """Choose as the plain task does, where there are labels to choose by."""
        if not self.blind:
            cast(Any, self.plain).calibrate(self, metrics)


class WithoutFigures(Metrics):
    """An evaluation of records without labels: the loss and its parts say all there is."""

    @override
    def update(self, outputs: Any, batch: PackedBatch) -> None:
        pass

    @override
    def merge(self, other: Any) -> None:
        pass

    @override
    def result(self) -> dict[str, float]:
        return {}


def taught(kind: type[AnyTask]) -> type[AnyTask]:
    """Return the class of a task that also learns from a teacher, and is the same otherwise.

    What it saves is what the plain task saves.
    """
    return cast(type[AnyTask], type(kind.__name__, (Taught, kind), {"plain": kind}))


@torch.no_grad()
def teacher_targets(
    task: AnyTask, teachers: Sequence[Teacher], batch: PackedBatch, how: Teaching
) -> dict[str, Tensor]:
    """Run the teachers on a batch, and return the targets that a student gets from them.

    Several teachers give the mean of their probabilities; what lies inside is of the first.

    Args:
        task: of the student.
        teachers: on the batch's device.
        batch: for the student; the teachers read the same tokens.
        how: what is learned.

    Returns:
        the targets by name: probabilities by feature, by token, or by the tokens that are scored.
    """
    first, targets = teachers[0], dict[str, Tensor]()
    if not how.looks_inside:
        return _soft(task, teachers, batch, how)
    with watched(first.backbone) as inside:
        if how.soft:
            targets |= _soft(task, teachers, batch, how)
        else:
            first.backbone(batch)
    assert inside.hidden is not None  # noqa: S101 - it ran
    assert inside.qkv is not None  # noqa: S101
    if how.hidden:
        targets[HIDDEN] = inside.hidden
    if how.relations:
        targets[QKV] = inside.qkv
    return targets


def _soft(
    task: AnyTask, teachers: Sequence[Teacher], batch: PackedBatch, how: Teaching
) -> dict[str, Tensor]:
    """Compute the mean of the teachers' probabilities."""
    if isinstance(task, TeachableTokens):
        return _soft_tokens(task, teachers, batch, how)
    total: Tensor | None = None
    for teacher in teachers:
        own_task: Any = teacher.task  # of the student's kind
        outputs = own_task.forward(teacher.model, batch)
        own: Tensor = own_task.soften(outputs, batch, how.temperature)
        if teacher.order is not None:
            own = own[..., list(teacher.order)]
        total = own if total is None else total + own
    assert total is not None  # noqa: S101 - there is a teacher
    return {SOFT: total / len(teachers)}


def _soft_tokens(
    task: TeachableTokens, teachers: Sequence[Teacher], batch: PackedBatch, how: Teaching
) -> dict[str, Tensor]:
    """Compute the probabilities of tokens, some rows of logits at a time."""
    select, hidden, heads = task.scored_tokens(batch), [], []
    for teacher in teachers:
        head = teacher.model
        assert isinstance(head, LanguageModelHead)  # noqa: S101 - of the student's kind
        # A model of pairs gives the hidden states of targets alone.
        rows = None if teacher.backbone.reads_pairs else select
        hidden.append(head.backbone(batch, select=rows).last_hidden_state)
        heads.append(head)
    size = heads[0].output_table().shape[0]
    at_a_time = max(1, CHUNK_BYTES // (4 * size))
    probs: list[Tensor] = []
    ids: list[Tensor] = []
    for start in range(0, len(hidden[0]), at_a_time):
        rows_of = (own[start : start + at_a_time] for own in hidden)
        logits = (head.decode(own) for head, own in zip(heads, rows_of, strict=True))
        soft = [(cast(Tensor, own).float() / how.temperature).softmax(-1) for own in logits]
        mean = soft[0] if len(soft) == 1 else torch.stack(soft).mean(0)
        if how.top_k is None or how.top_k >= size:
            probs.append(mean)
            continue
        # The rest is summed up by itself: as 1 less the others it would be rounding error.
        top = mean.topk(how.top_k)
        rest = mean.scatter(1, top.indices, 0.0).sum(-1, keepdim=True)
        probs.append(torch.cat([top.values, rest], 1))
        ids.append(top.indices)
    targets = {SOFT: torch.cat(probs)}
    return {**targets, SOFT_IDS: torch.cat(ids)} if ids else targets
