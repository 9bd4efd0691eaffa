"""`tag`: a tag for each word of a sentence, which gives the names of people, places, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import override

from pretune.checkpoints.config import CRF
from pretune.data.arrays import Array
from pretune.data.batch import Feature, Features, PackedBatch, Repaired, Skipped
from pretune.data.records import Records
from pretune.errors import DataError, WrongValueError, did_you_mean
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.token import TagScores
from pretune.tasks.base import (
    Loss,
    Prediction,
    ReadsWindows,
    Task,
    TaskOptions,
    UsesTokenizer,
    usual_length,
)
from pretune.tasks.certainty import HasCertainty
from pretune.tasks.distillation.teachable import Comparison, Teachable, compare_classes
from pretune.tasks.grading import Decision, EachLoss, Grade
from pretune.tasks.labels import (
    label_entries,
    look_alikes,
    numbered,
    published_labels,
    shown_counts,
    stored_labels,
)
from pretune.tasks.losses import CrossEntropyOptions, cross_entropy, sum_by_sequence
from pretune.tasks.tagging import schemes, scoring
from pretune.tasks.tagging.features import (
    BEGINS,
    ENDS,
    LABEL,
    WORD,
    special_tokens,
    split_words,
    tokens_by_word,
    word_windows,
    words_of,
)
from pretune.tasks.tagging.schemes import OUTSIDE, EntitySpan, Scheme, spans, split_tag, types_of
from pretune.tokenizers.engines import space_before_words
from pretune.tokenizers.tokenizer import Tokenizer


class TagOptions(CrossEntropyOptions):
    """Options of `tag`."""

    name: Literal["tag"] = Field("tag", description="A tag for each word: names, places, ...")
    max_length: int = Field(
        256,
        ge=8,
        description="The maximum number of tokens of a window; a longer sentence is read in "
        "several windows.",
    )
    overlap: int = Field(
        64,
        ge=0,
        description="The maximum number of tokens that two neighbouring windows share. Each word "
        "counts in the window that shows the most context around it. Default: with a max_length "
        "below 128 a quarter of it.",
    )
    scheme: Scheme = Field("bio", description="The tagging scheme of the model.")
    data_scheme: Scheme | Literal["auto"] = Field(
        "auto", description="The tagging scheme of the data; auto: that of the training data."
    )
    labels: list[str] | None = Field(
        None, description="The names of the data's tags, in order, where they are numbers."
    )
    crf: bool = Field(
        False,
        description="Put a conditional random field on top: it learns which tag follows which, and "
        "only well-formed sequences are predicted. transformers does not read it.",
    )
    crf_rate: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="The learning rate of the CRF, as a multiple of the model's.",
    )
    dropout: float | None = Field(
        None, ge=0, lt=1, description="Dropout before the last layer. Default: the model's own."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        half = self.max_length // 2
        if self.overlap > half:
            if "overlap" in self.model_fields_set:
                raise WrongValueError(
                    f"overlap must be at most half of max_length: {half} (it is {self.overlap}); "
                    f"task.overlap={half} is allowed"
                )
            object.__setattr__(self, "overlap", self.max_length // 4)  # frozen: still construction
        if self.crf and (self.label_smoothing or self.z_loss):
            raise WrongValueError(
                "label_smoothing and z_loss are not for a crf: its loss has no classes"
            )
        return self

    @classmethod
    def of_length(cls, length: int, scheme: Scheme = "bio", *, crf: bool = False) -> Self:
        """Return the default options, adapted to windows of `length` tokens."""
        return cls(max_length=length, overlap=min(64, length // 4), scheme=scheme, crf=crf)


@dataclass(frozen=True)
class Entity:
    """A predicted entity; its score is the mean probability of its words' tags.

    `start` and `end` are its first character in a given text and the one after its last; in a given
    list of words they are words.
    """

    type: str
    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class TagPrediction(Prediction):
    """The entities of a text; and the tag of each word, where words were given.

    Attributes:
        entities: each with its `text`, `type`, `start`, `end` (characters of the text) and `score`.
        tags: the tag of each word; None where a text was given.
    """

    entities: tuple[Entity, ...]
    tags: tuple[str, ...] | None = None

    @override
    def to_dict(self) -> dict[str, Any]:
        entities: dict[str, Any] = {"entities": [asdict(entity) for entity in self.entities]}
        return entities if self.tags is None else {**entities, "tags": list(self.tags)}

    @override
    def ranked(self) -> list[tuple[str, float]]:
        """List the entities in the order of the text."""
        return [(f"{e.text}  {e.type}  [{e.start}:{e.end}]", e.score) for e in self.entities]


class Tagger(Task[TagOptions, TagPrediction], HasCertainty, ReadsWindows, Teachable, UsesTokenizer):
    """A label for the first token of each word (BERT, section 5.3); other tokens have none.
    In some data, such as Chinese ones, every character is a word (`characters`).
    """

    name: ClassVar[str] = "tag"
    options_type: ClassVar[type[TaskOptions]] = TagOptions
    best_by: ClassVar[str] = "f1"
    inputs: ClassVar[dict[str, str]] = {"tokens": "a text, or the list of its words"}
    targets: ClassVar[dict[str, str]] = {"ner_tags": "the tag of each word"}
    truncation_note: ClassVar[str] = "had a word longer than a window, which was cut"

    def __init__(
        self,
        options: TagOptions,
        labels: Iterable[str] = (),
        *,
        characters: bool = False,
        data_scheme: Scheme = "bio",
    ) -> None:
        super().__init__(options)
        self.labels = list(labels)
        self.characters = characters
        self.data_scheme = data_scheme

    # Preprocessor

    @override
    def bind(self, tokenizer: Tokenizer) -> None:
        """Let words of a byte-level tokenizer begin with a space, as they do within texts.

        A word by itself would be other tokens. transformers asks for the same (`add_prefix_space`).
        """
        if space_before_words(tokenizer.engine):
            tokenizer.settings["add_prefix_space"] = True

    @override
    def check(self, records: Records, row: int, *, with_targets: bool) -> None:
        words_of(records, row, characters=False)
        if with_targets:
            self._raw_tags(records, row)

    @override
    def fit(self, records: Records) -> None:
        """Collect the types, and find the scheme and whether words are characters.

        Raises:
            DataError: no record has an entity, or its tags cannot be read.
        """
        tags = [self._raw_tags(records, row) for row in range(len(records))]
        given = self.options.data_scheme
        self.data_scheme = schemes.find_scheme(tags) if given == "auto" else given
        words = [w for row in records.rows for w in row["tokens"] if isinstance(w, str)]
        self.characters = sum(len(word) == 1 for word in words) > 0.9 * len(words)
        # The recipe or the source names the tags in their order; else the order is alphabetical.
        named = self.options.labels or records.categories.get("ner_tags")
        if records.held_back is not None:  # its types are known in training
            held = records.held_back
            tags += [self._raw_tags(held, row) for row in range(len(held))]
        types = types_of(named or sorted({tag for own in tags for tag in own}))
        if not types:
            raise DataError(
                f"{records.origin}, column '{records.in_data('ner_tags')}': there is no entity, "
                "all words are O",
                "Is it the right column? (data.columns.ner_tags=COLUMN)",
            )
        self.labels = schemes.labels_of(types, self.options.scheme)

    @override
    def remarks(self, records: Records) -> Iterable[str]:
        counts = dict.fromkeys(types_of(self.labels), 0)
        for row in range(len(records)):
            for span in spans(self._raw_tags(records, row)):
                counts[span.type] += 1
        yield f"{len(counts):,} types of entities: {shown_counts(counts)}"
        yield from look_alikes(counts)

    def _raw_tags(self, records: Records, row: int) -> list[str]:
        """Return the tags of a record as they are spelled in the data.

        Raises:
            DataError: the record has no tag for each word, or one that is in no scheme.
        """
        # As many tags as words, both as lists.
        value, words = records.rows[row].get("ner_tags"), records.rows[row].get("tokens")
        where = records.where(row, "ner_tags")
        if not isinstance(value, list) or not isinstance(words, list):
            raise DataError(
                f"{where}: expected a list of tags and, in 'tokens', one of words",
                'Write {"tokens": ["Ada", "slept"], "ner_tags": ["B-PER", "O"]}.',
            )
        if len(value) != len(words):
            raise DataError(
                f"{where}: {len(value)} tags for {len(words)} words", "Give each word one tag."
            )
        names, tags = self.options.labels or records.categories.get("ner_tags"), []
        for item, tag in enumerate(value):
            # A number stands for a tag whose name the recipe or the source knows.
            if isinstance(tag, int) and not isinstance(tag, bool) and names is not None:
                tag = names[tag] if 0 <= tag < len(names) else tag
            tag = tag.strip() if isinstance(tag, str) else tag
            if not isinstance(tag, str) or not schemes.is_tag(tag):
                hint = "Tags are O, or B-, I-, E-, S- (L-, U-, M-) and a type, such as B-PER."
                if isinstance(tag, int):
                    order = "List the tags in the order of their numbers"
                    hint = f"{order}: task.labels=[O, B-PER, ...]"
                place = records.where(row, "ner_tags", item)
                raise DataError(f"{place}: {tag!r} is no tag of an entity", hint)
            tags.append(tag)
        return tags

    def _tags(self, records: Records, row: int, ids: Mapping[str, int]) -> list[str]:
        """Return the tags of a record as the model spells them.

        Raises:
            DataError: the model has no such tag; names file and line, and the nearest type.
        """
        raw, tags = self._raw_tags(records, row), []
        for item, tag in enumerate(schemes.write_tags(spans(raw), len(raw), self.options.scheme)):
            own = schemes.spelled(tag, ids)
            if own is None:
                kinds, kind = types_of(self.labels), split_tag(tag)[1]
                problem, hint = f"unknown type '{kind}'", did_you_mean(kind, kinds)
                if tag == OUTSIDE or kind in kinds:
                    problem = f"the model has no tag '{tag}'"
                    hint = f"It has: {', '.join(self.labels)}."
                raise DataError(
                    f"{records.where(row, 'ner_tags', item)}: {problem}",
                    f"{hint} Correct the data, or train with data that contain it.",
                )
            tags.append(own)
        return tags

    def _repaired(self, records: Records, row: int) -> Repaired | None:
        """Report the first tag of a record that its scheme does not allow there."""
        tags = self._raw_tags(records, row)
        at = schemes.malformed(tags, self.data_scheme)
        if at is None:
            return None
        after = f"after {tags[at - 1]}" if at else "at the beginning"
        problem = f"{tags[at]} {after} is not in {self.data_scheme}"
        return Repaired(row, f"{records.where(row, item=at)}: {problem}; read as conlleval does")

    @override
    def without_text(self, row: Mapping[str, Any], *, with_targets: bool) -> bool:
        """Whether there is no sentence; one without words is a sentence with no tags."""
        return super().without_text(row, with_targets=with_targets) and row.get("tokens") != []

    @override
    def texts(self, records: Records) -> Iterator[str]:
        for row, record in enumerate(records.rows):
            if not self.without_text(record, with_targets=True):
                words = words_of(records, row, characters=self.characters)
                yield self.separator.join(words)

    @override
    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped | Repaired]:
        """Yield the windows of each sentence; one without words is skipped where it has targets."""
        before, after = special_tokens(tokenizer)
        room = self.options.max_length - len(before) - len(after)
        unknown = tokenizer.special_id("unk_token") or 0
        ids = numbered(self.labels)
        words = [words_of(records, row, characters=self.characters) for row in rows]
        for row, own, encoding in zip(rows, words, tokenizer.encode_words(words), strict=True):
            # The tags of the words; a sentence that its scheme does not allow is reported.
            labels = None
            if with_targets:
                tags = self._tags(records, row, ids)
                labels = np.array([ids[tag] for tag in tags], dtype=np.int32)
                if not own:
                    yield Skipped(row, "no words")
                    continue
                if (repaired := self._repaired(records, row)) is not None:
                    yield repaired
            # Windows hold whole words, so they are laid over words first and then over tokens.
            tokens, sizes, cut = tokens_by_word(encoding, len(own), room, unknown)
            starts = np.cumsum([0, *sizes])
            for window in word_windows(sizes, room, self.options.overlap):
                low, high = starts[window.start], starts[window.end]
                part = np.concatenate([before, tokens[low:high], after])
                # The targets stand at the first token of each word that counts in the window.
                counted = np.arange(window.first, window.stop)
                places = starts[counted] - low + len(before)
                targets: dict[str, Any] = {
                    WORD: np.full(len(part), -1, dtype=np.int32),
                    BEGINS: window.first == 0,
                    ENDS: window.stop == len(own),
                }
                targets[WORD][places] = counted
                if labels is not None:
                    targets[LABEL] = np.full(len(part), -1, dtype=np.int32)
                    targets[LABEL][places] = labels[counted]
                # A sentence is counted once as cut, in its first window.
                first = cut and window.first == 0
                yield Feature(cast(Sequence[int], part), [0] * len(part), targets, row, first)

    @override
    def feature_key(self) -> Any:
        return [*super().feature_key(), self.characters, self.data_scheme]

    # Head

    @property
    @override
    def head(self) -> str:
        return "token_classification_crf" if self.options.crf else "token_classification"

    @override
    def build(self, backbone: Backbone) -> nn.Module:
        options = self.options
        more = {"crf_rate": options.crf_rate} if options.crf else {}
        return build_head(backbone, self.head, len(self.labels), dropout=options.dropout, **more)

    @override
    def forward(self, model: nn.Module, batch: PackedBatch) -> TagScores:
        """Score the words; the last layer computes nothing for the other tokens."""
        select, targets = batch.where(batch.targets[WORD] >= 0), batch.targets
        if not self.options.crf:
            return TagScores(model(batch, select=select))
        more: dict[str, Tensor] = {}
        if LABEL in targets:
            labels = targets[LABEL][select.rows].long()
            more = {"labels": labels, "begins": targets[BEGINS], "ends": targets[ENDS]}
        outputs: TagScores = model(batch, select=select, **more)
        return outputs

    @override
    def loss(self, outputs: TagScores, batch: PackedBatch) -> Loss:
        """Compute the cross-entropy, or minus the CRF's log-likelihood; counted in words."""
        labels = batch.targets[LABEL][batch.targets[WORD] >= 0].long()
        if outputs.likelihood is not None:
            return Loss(-outputs.likelihood.sum(), len(labels))
        options = self.options
        total, parts = cross_entropy(
            outputs.logits, labels, options.label_smoothing, options.z_loss
        )
        return Loss(total, len(labels), parts)

    # Learning from a teacher

    @override
    def soften(self, outputs: TagScores, batch: PackedBatch, temperature: float) -> Tensor:
        """Return the probabilities of each word's tags at its first token, `[T, labels]`."""
        probs = (outputs.logits.float() / temperature).softmax(-1)
        rows = batch.where(batch.targets[WORD] >= 0).rows
        return probs.new_zeros(batch.num_tokens, probs.shape[1]).index_copy(0, rows, probs)

    @override
    def compare(
        self, outputs: TagScores, soft: Tensor, batch: PackedBatch, temperature: float
    ) -> Comparison:
        words = soft[batch.targets[WORD] >= 0]
        return compare_classes(outputs.logits, words, temperature)

    @override
    def terms(self, batch: PackedBatch) -> Tensor:
        """Return the number of words in each window."""
        lengths = batch.where(batch.targets[WORD] >= 0).layout.lengths
        return torch.tensor(lengths, dtype=torch.float32, device=batch.tokens.device)

    # Answers

    @override
    def empty_answer(self) -> TagPrediction:
        return TagPrediction(())

    @override
    def predict(self, outputs: TagScores, batch: PackedBatch) -> list[scoring.WindowTags]:
        return scoring.window_tags(outputs, batch)

    @override
    def certainty(self, outputs: TagScores, batch: PackedBatch, answered: TagScores) -> Tensor:
        """Return the log-probability of the likeliest tags, each word's by itself."""
        best = answered.logits.argmax(-1, keepdim=True)
        return outputs.logits.float().log_softmax(-1).gather(-1, best).sum()

    @property
    def separator(self) -> str:
        """What stands between two words."""
        return "" if self.characters else " "

    @override
    def combine(
        self, parts: Sequence[scoring.WindowTags], record: Mapping[str, Any]
    ) -> TagPrediction:
        """Read the entities from the words of all windows."""
        given = record["tokens"]
        ((labels, probabilities),) = scoring.decode_tags([parts], self.labels, self.options.scheme)
        tags = [self.labels[label] for label in labels]
        scores = probabilities[np.arange(len(labels)), labels]
        # Where each word stands in what was given: its characters, or its place in the list.
        if isinstance(given, str):
            places = split_words(given, characters=self.characters)
        else:
            places = [(i, i + 1) for i in range(len(given))]
        entities = []
        for span in spans(tags):
            start, end = places[span.start][0], places[span.end - 1][1]
            part = given[start:end]
            text = part if isinstance(part, str) else self.separator.join(part)
            score = float(scores[span.start : span.end].mean())
            entities.append(Entity(span.type, text, score, start, end))
        return TagPrediction(tuple(entities), None if isinstance(given, str) else tuple(tags))

    # Scorer

    @override
    def each_loss(self, outputs: TagScores, batch: PackedBatch) -> EachLoss:
        """Compute the loss of each window, counted in words."""
        select = batch.where(batch.targets[WORD] >= 0)
        counts = torch.tensor(select.layout.lengths)
        if outputs.likelihood is not None:
            return EachLoss(-outputs.likelihood.detach(), counts)
        labels = batch.targets[LABEL][select.rows].long()
        each = F.cross_entropy(outputs.logits.detach().float(), labels, reduction="none")
        return EachLoss(sum_by_sequence(each, select.layout), counts)

    @override
    def grader(self, records: Records) -> Callable[[TagPrediction, int], Grade]:
        """Compare entities; the counts are three of each type, the right tags, and the words."""
        ids, types = numbered(self.labels), numbered(types_of(self.labels))

        def grade(answer: TagPrediction, row: int) -> Grade:
            words, tags = records.rows[row]["tokens"], self._tags(records, row, ids)
            true = spans(tags)
            predicted = {EntitySpan(e.start, e.end, e.type): e.score for e in answer.entities}
            # For each type: entities predicted rightly, true, and predicted.
            counts = np.zeros((3, len(types)))
            for place, group in enumerate((predicted.keys() & true, true, predicted)):
                for span in group:
                    counts[place, types[span.type]] += 1
            tags_right = sum(a == b for a, b in zip(tags, answer.tags or (), strict=True))

            def text(span: EntitySpan) -> str:
                return self.separator.join(words[span.start : span.end])

            def shown(group: Iterable[EntitySpan]) -> str:
                return "; ".join(f"{span.type} {text(span)}" for span in group)

            return Grade(
                truth=shown(true),
                answer=shown(predicted),
                right=set(true) == predicted.keys(),
                decisions=tuple(Decision(score, span in true) for span, score in predicted.items()),
                mistakes=tuple(scoring.span_mistakes(true, predicted, text)),
                counts=(*counts.ravel().tolist(), float(tags_right), float(len(words))),
            )

        return grade

    @override
    def figures(self, sums: Array) -> dict[str, Array]:
        entities = scoring.entity_figures(*np.split(sums[..., 2:-2], 3, axis=-1))
        accuracy = sums[..., -2] / np.maximum(sums[..., -1], 1)
        return {**super().figures(sums), **entities, "accuracy": accuracy}

    @override
    def metrics(self, features: Features | None = None) -> scoring.TagMetrics:
        return scoring.TagMetrics(self.labels, self.options.scheme)

    # Described

    @override
    def config_entries(self) -> dict[str, Any]:
        return {**label_entries(self.labels), **({CRF: True} if self.options.crf else {})}

    @override
    def state(self) -> dict[str, Any]:
        own = {"characters": self.characters, "data_scheme": self.data_scheme}
        return {"labels": self.labels, **own}

    @override
    def with_state(self, state: Mapping[str, Any]) -> Self:
        return type(self)(
            self.options,
            stored_labels(state["labels"]),
            characters=bool(state["characters"]),
            data_scheme=state["data_scheme"],
        )

    @override
    def output_meaning(self) -> dict[str, Any]:
        return {"labels": self.labels}

    @classmethod
    @override
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith("ForTokenClassification"):
            return None
        labels = published_labels(config)
        length = max(8, usual_length(config, 256))
        options = TagOptions.of_length(
            length, schemes.scheme_of(labels), crf=config.get(CRF) is True
        )
        return cls(options, labels)
