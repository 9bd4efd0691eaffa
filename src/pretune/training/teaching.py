"""The teachers of a run: loaded and checked; asked once, before training, or for each batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pretune.bundle.bundle import Bundle, load, outline
from pretune.data.arrays import Array
from pretune.data.batch import Features, FeatureSet, PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError, PretuneError, RecipeError, RunError, with_article
from pretune.inference.reference import check_vocabulary, frozen, frozen_outputs
from pretune.inference.runtime import precision_context
from pretune.models.heads.language import LanguageModelHead
from pretune.recipe.recipe import Recipe
from pretune.recipe.schema import TeacherSection
from pretune.tasks.base import AnyTask, DrawsAnew, HasReference
from pretune.tasks.builtin import TASKS, task_class
from pretune.tasks.distillation.taught import (
    SOFT,
    SOFT_IDS,
    Taught,
    Teacher,
    Teaching,
    taught,
    teacher_targets,
)
from pretune.tasks.distillation.teachable import Teachable, TeachableRecord, TeachableTokens
from pretune.tasks.features import FeatureCache, record_features

#: Where a student must have the tokenizer of its teacher, and how it need not.
SAME_TOKENS = (
    "A teacher of tokens must have the student's tokenizer. For classify, multilabel and regress "
    "any will do, as long as only outputs are learned and kept: hidden=0, relations=0, no keep."
)


def student_task(recipe: Recipe) -> AnyTask:
    """Make the task of a recipe; with a teacher, one that learns from it and has its labels.

    Raises:
        RecipeError: nothing can be learned for this task from this teacher; names both.
    """
    kind, section = task_class(recipe.task.name), recipe.teacher
    if section is None:
        return kind(recipe.task)
    if not _teachable(kind):
        able = ", ".join(name for name in TASKS if _teachable(TASKS[name]))
        raise RecipeError(
            f"teacher: {recipe.task.name} has no teacher", f"These tasks can have one: {able}."
        )
    if getattr(recipe.task, "crf", False):
        raise RecipeError(
            "teacher: what a conditional random field gives is no probability of a word's tag",
            "Set task.crf=false, and teach by a model without one.",
        )
    if recipe.train.parallel == "fsdp":
        raise RecipeError(
            "teacher: the model of a teacher is whole in each process", "Set train.parallel=ddp."
        )
    output = Path(recipe.output).resolve()
    if any(Path(source).resolve().is_relative_to(output) for source in section.source):
        raise RecipeError(
            f"teacher.from: the teacher lies in the folder of the run, {recipe.output}",
            "Choose another folder: output=FOLDER.",
        )
    options, state = recipe.task, None
    if section.soft:
        trained = _trained(section.source[0], recipe.task.name)
        state = trained.state()
        # Data may have only some of its labels, or none.
        labels = getattr(trained, "labels", None)
        fields = type(options).model_fields
        named = getattr(options, "labels", None) or getattr(options, "label_columns", None)
        if issubclass(kind, TeachableRecord) and "labels" in fields and not named:
            options = options.model_copy(update={"labels": labels})
    task: Any = taught(kind)(options)
    if state is not None:
        task = task.with_state(state)
        task.known_labels = None if named else labels
    if isinstance(task, TeachableRecord):
        task.unlabelled = True
    return cast(AnyTask, task)


def _teachable(kind: type[AnyTask]) -> bool:
    """Whether a task can have a teacher; one that has a reference is tied to that."""
    able = issubclass(kind, Teachable | TeachableTokens)
    return able and not issubclass(kind, HasReference)


def _trained(source: str, name: str) -> AnyTask:
    """Return the task of a teacher, which must be the student's."""
    try:
        trained = outline(source).task
    except PretuneError as error:
        raise RecipeError(
            f"teacher.from: {error.message}",
            error.hint or "Train the teacher first, or name the folder of one.",
        ) from None
    _check_task(source, trained, name)
    assert trained is not None  # noqa: S101 - checked
    return trained


def _check_task(source: str, trained: AnyTask | None, name: str) -> None:
    if trained is None or trained.name != name:
        was = "for no task" if trained is None else f"for {trained.name}"
        raise RecipeError(
            f"teacher.from: {source} was trained {was}, and the student is for {name}",
            "Both must do the same: name another teacher, or leave out task.name. Without "
            "probabilities (soft=0), relations=1 learns from any encoder.",
        )


@dataclass(frozen=True)
class Lessons:
    """The teachers of a run, and how its student learns from them."""

    section: TeacherSection
    teachers: Sequence[Teacher]
    bundles: Sequence[Bundle]
    task: AnyTask  # the student's
    kept: bool  # whether outputs are computed once
    device: torch.device
    precision: str

    @property
    def how(self) -> Teaching:
        """What is learned."""
        own = self.section
        weights = (own.soft, own.labels, own.hidden, own.relations)
        return Teaching(own.temperature, *weights, own.top_k)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        task: AnyTask,
        student: Bundle,
        features: Sequence[Features | None],
        device: torch.device,
    ) -> Lessons:
        """Load the teachers of a recipe, and check that they suit the student.

        Args:
            recipe: with a teacher.
            task: of the student, fitted to its data.
            student: as it starts.
            features: of its training and its validation.
            device: where to compute.

        Raises:
            PretuneError: a teacher is not there, or does not suit the student; says why.
        """
        section = recipe.teacher
        assert section is not None  # noqa: S101 - whoever has none does not ask
        kept = _is_kept(section, task, features)
        longest = max(_longest(own) for own in features if own is not None and len(own))
        teachers, bundles = [], []
        for source in section.source:
            try:
                bundle = load(source, bare=not section.soft)
            except PretuneError as error:
                raise CheckpointError(f"teacher.from: {error.message}", error.hint) from None
            order = None
            if section.soft:
                _check_task(source, bundle.task, task.name)
                order = _order(source, bundle, task)
            if not (kept and isinstance(task, TeachableRecord)):
                _check_reads(source, bundle, student, task, longest)
            _check_inside(source, bundle, student, section)
            teachers.append(Teacher(frozen(bundle.model, device), bundle.task, order))
            bundles.append(bundle)
        return cls(section, teachers, bundles, task, kept, device, recipe.train.precision)

    def remarks(self) -> Iterator[str]:
        """Yield a line on each teacher: its size, and when it is asked."""
        for source, teacher in zip(self.section.source, self.teachers, strict=True):
            size = sum(weight.numel() for weight in teacher.model.parameters())
            if self.kept:
                yield f"teacher: {source}, {size:,} parameters, asked once, before training"
            else:
                yield f"teacher: {source}, {size:,} parameters, asked for each batch"

    def live(self) -> Callable[[PackedBatch], PackedBatch]:
        """Return a function that adds what the teachers give to a batch."""
        turn = Lock()  # batches may be made in several threads

        def add(batch: PackedBatch) -> PackedBatch:
            batch = batch.to(self.device)
            with turn, precision_context(self.device, self.precision):
                given = teacher_targets(self.task, self.teachers, batch, self.how)
            return replace(batch, targets={**batch.targets, **given})

        return add

    def outputs(
        self,
        features: FeatureSet,
        records: Records,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Array]:
        """Compute the targets of features, by name, from the teachers.

        Args:
            features: of the student.
            records: that they were made from.
            progress: called with the number of features done, in parts where several teachers read
                them one after the other.
        """
        if isinstance(self.task, TeachableRecord):

            def done(share: float) -> None:
                if progress is not None:
                    progress(round(share * len(features)))

            return {SOFT: self._by_record(records, done)[features.records]}
        models = [teacher.model for teacher in self.teachers]
        how: dict[str, Any] = {"device": self.device, "precision": self.precision}
        return frozen_outputs(self._by_token, models, features, progress=progress, **how)

    def _by_record(self, records: Records, progress: Callable[[float], None]) -> Array:
        """Compute `[records, C]`: each teacher reads records by its own tokenizer and length.

        `progress` is called with the share of the work that is done.
        """
        total: Array | None = None
        for before, (teacher, bundle) in enumerate(zip(self.teachers, self.bundles, strict=True)):
            assert teacher.task is not None  # noqa: S101 - outputs are learned
            features = record_features(
                *(teacher.task, records, bundle.tokenizer),
                with_targets=False,
                cache=FeatureCache.usual(),
            )

            def done(count: int, before: int = before, whole: int = len(features)) -> None:
                progress((before + count / whole) / len(self.teachers))

            outputs = frozen_outputs(
                lambda batch, own=teacher: teacher_targets(self.task, [own], batch, self.how),  # type: ignore[misc]
                [teacher.model],
                features,
                device=self.device,
                precision=self.precision,
                progress=done,
            )
            table = np.zeros((len(records), outputs[SOFT].shape[1]), dtype=np.float32)
            table[features.records] = outputs[SOFT]
            total = table if total is None else total + table
        assert total is not None  # noqa: S101 - there is a teacher
        kind = torch.empty(0, dtype=cast(Teachable, self.task).soft_type).numpy().dtype
        return (total / len(self.teachers)).astype(kind)

    def _by_token(self, batch: PackedBatch) -> dict[str, Tensor]:
        """Compute `[T, C]` of a batch, in the types that are kept."""
        given = teacher_targets(self.task, self.teachers, batch, self.how)
        given[SOFT] = given[SOFT].half()
        if SOFT_IDS in given:
            given[SOFT_IDS] = given[SOFT_IDS].int()
        if not isinstance(self.task, TeachableTokens):
            return given
        select = self.task.scored_tokens(batch)
        if select is None:
            return given
        return {
            name: values.new_zeros(batch.num_tokens, *values.shape[1:]).index_copy(
                0, select.rows, values
            )
            for name, values in given.items()
        }

    def check_room(self, folder: Path, features: Sequence[Features | None]) -> str | None:
        """Return a line on the room that kept outputs of a vocabulary take on the disk.

        Raises:
            RunError: there is not as much.
        """
        if not isinstance(self.task, TeachableTokens):
            return None
        head = self.teachers[0].model
        assert isinstance(head, LanguageModelHead)  # noqa: S101 - of a task with tokens
        size, k = len(head.output_table()), self.section.top_k
        # Probabilities in 2 bytes, also of the rest, and ids in 4.
        each = 2 * size if k is None or k >= size else 2 * (k + 1) + 4 * k
        tokens = sum(int(own.lengths.sum()) for own in features if own is not None)
        free = shutil.disk_usage(folder).free
        needs = f"{tokens * each / 1e6:,.1f} MB for {tokens:,} tokens, {each:,} bytes each"
        if tokens * each > free:
            raise RunError(
                f"{folder}: the outputs of the teacher take {needs}, and {free / 1e6:,.1f} MB are "
                "free",
                "Keep fewer tokens of the vocabulary (teacher.top_k), or none: teacher.keep=false.",
            )
        return f"teacher: its outputs take {needs} (teacher.top_k), in {folder}"


def _is_kept(section: TeacherSection, task: AnyTask, features: Sequence[Features | None]) -> bool:
    """Whether a teacher's outputs are computed once."""
    assert isinstance(task, Taught)  # noqa: S101 - it has a teacher
    why = None
    if issubclass(task.plain, DrawsAnew):
        why = f"{task.name} changes batches in each epoch"
    elif not all(isinstance(own, FeatureSet | None) for own in features):
        why = "the features of a prepared corpus are made anew"
    elif section.hidden or section.relations:
        return False
    if why is not None and section.keep:
        raise RecipeError(f"teacher.keep: {why}", "Leave it out: the teacher reads each batch.")
    return why is None and section.keep is not False


def _order(source: str, bundle: Bundle, task: AnyTask) -> tuple[int, ...] | None:
    """Return the places of the student's outputs among a teacher's; None where all are the same."""
    theirs: AnyTask = cast(AnyTask, bundle.task)
    if list(theirs.inputs) != list(task.inputs):
        raise CheckpointError(
            f"teacher.from: {source} reads {', '.join(theirs.inputs)}, and the student "
            f"{', '.join(task.inputs)}",
            "Both must read the same: task.pair.",
        )
    if getattr(theirs.options, "crf", False):
        raise CheckpointError(
            f"teacher.from: {source} has a conditional random field, whose outputs are no "
            "probabilities of a word's tag",
            "Teach by a model without one (task.crf=false).",
        )
    own, labels = task.output_meaning().get("labels"), theirs.output_meaning().get("labels")
    if own == labels or own is None or labels is None:
        return None
    if {*own} != {*labels}:
        unknown = [label for label in own if label not in labels]
        lacking = [label for label in labels if label not in own]
        raise CheckpointError(
            f"teacher.from: {source} has other labels than the student"
            + (f"; it does not know {', '.join(unknown)}" if unknown else "")
            + (f"; the student lacks {', '.join(lacking)}" if lacking else ""),
            f"Both must have the same, in any order. The teacher has: {', '.join(labels)}. Leave "
            "task.labels out to take the teacher's, and correct or leave out records with others.",
        )
    return tuple(labels.index(label) for label in own)


def _longest(features: Features) -> int:
    """The most tokens of a sequence; a feature may be several, as a source and its target."""
    several = features.choices if isinstance(features, FeatureSet) else None
    return max(map(max, several)) if several else int(features.lengths.max())


def _check_reads(source: str, bundle: Bundle, student: Bundle, task: AnyTask, longest: int) -> None:
    """Check that a teacher can read the student's tokens."""
    check_vocabulary(student, bundle, SAME_TOKENS, what="teacher")
    config = bundle.backbone.config
    sizes = [model.backbone.config.target_vocab_size for model in (bundle, student)]
    if isinstance(task, TeachableTokens) and bundle.task is not None and sizes[0] != sizes[1]:
        raise CheckpointError(
            f"teacher.from: {source} has {sizes[0]:,} outputs, and the student {sizes[1]:,}",
            "Probabilities are compared token by token: without model.new_tokens, and with the "
            "same model.vocab_multiple.",
        )
    positions = config.size("max_position_embeddings")
    if not config.endless and longest > positions:
        raise CheckpointError(
            f"teacher.from: {source} reads at most {positions} tokens, and the student's longest "
            f"text has {longest}",
            f"Set task.max_length={positions}, or less.",
        )


def _check_inside(source: str, bundle: Bundle, student: Bundle, section: TeacherSection) -> None:
    """Check that what lies inside a teacher and a student can be compared."""
    own, other = student.backbone, bundle.backbone
    if not other.has_attention:
        raise CheckpointError(
            f"teacher.from: {source} carries a state from text to text, which no student follows",
            "Name a Transformer.",
        )
    if not (section.hidden or section.relations):
        return
    if own.reads_pairs or other.reads_pairs or not own.has_attention:
        raise CheckpointError(
            "teacher: hidden and relations compare Transformers of one stack of layers",
            "Set teacher.hidden=0 and teacher.relations=0.",
        )
    widths = [model.config.size("hidden_size") for model in (other, own)]
    attentions = [cast(Any, model.layers[-1]).attention for model in (other, own)]
    for model, attention in zip((other, own), attentions, strict=True):
        if section.relations and not attention.usual:
            raise CheckpointError(
                f"teacher.relations: {with_article(model.config.model_type)} model does not score "
                "its keys by products with queries alone, which is what is compared",
                "Set teacher.relations=0.",
            )
    if section.hidden and widths[0] != widths[1]:
        raise CheckpointError(
            f"teacher.hidden: {source} has another width than the student: {widths[0]}, not "
            f"{widths[1]}",
            "teacher.relations compares models of any width.",
        )
    heads = [attention.num_heads for attention in attentions]
    if section.relations and heads[0] != heads[1]:
        raise CheckpointError(
            f"teacher.relations: {source} has another number of heads in its last layer than the "
            f"student: {heads[0]}, not {heads[1]}",
            "Choose another student, or give a new one as many heads by model.config.",
        )


def lessons_key(section: TeacherSection, task: AnyTask, files: Mapping[str, str]) -> str:
    """Return all that a teacher's kept outputs depend on beside the features."""
    labels = task.output_meaning()
    return f"{sorted(files.items())} {section.temperature} {section.top_k} {labels}"
