"""Tagging: a tag for each word of a sentence, and with them the names of people, places, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.checkpoints.config import CRF
from pretune.data.arrays import Array
from pretune.data.batch import (
    Feature,
    Features,
    PackedBatch,
    Repaired,
    Skipped,
)
from pretune.data.records import Records
from pretune.errors import DataError, did_you_mean
from pretune.models.backbone import Backbone
from pretune.models.families import build_head
from pretune.models.heads.token import TagScores
from pretune.tasks.base import Loss, Prediction, ReadsWindows, Task, usual_length
from pretune.tasks.grading import EachLoss, Grade
from pretune.tasks.labels import published_labels, stored_labels
from pretune.tasks.losses import cross_entropy, sum_by_sequence
from pretune.tasks.tagging.decode import WindowTags, decode, window_tags
from pretune.tasks.tagging.features import (
    BEGINS,
    ENDS,
    LABEL,
    WORD,
    around,
    pieces_of,
    split_words,
    windows,
    words_of,
)
from pretune.tasks.tagging.grade import tag_grader, types_of
from pretune.tasks.tagging.metrics import TagMetrics, entity_figures
from pretune.tasks.tagging.options import TagOptions
from pretune.tasks.tagging.schemes import (
    OUTSIDE,
    Scheme,
    find_scheme,
    is_tag,
    labels_of,
    malformed,
    scheme_of,
    spans,
    spelled,
    split_tag,
    write,
)
from pretune.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Entity:
    """An entity that was found.

    Attributes:
        type: of it.
        text: of it.
        score: the mean probability of its words' tags.
        start: where it begins in what was given, from 0: which character of a text, or which word
            of a list of words.
        end: the one after its last.
    """

    type: str
    text: str
    score: float
    start: int
    end: int


@dataclass(frozen=True)
class TagPrediction(Prediction):
    """The entities of a text; and the tag of each word, where words were given."""

    entities: tuple[Entity, ...]
    tags: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what there is not."""
        found: dict[str, Any] = {"entities": [asdict(entity) for entity in self.entities]}
        return found if self.tags is None else {**found, "tags": list(self.tags)}

    def ranked(self) -> list[tuple[str, float]]:
        """The entities in the order of the text."""
        return [(f"{e.text}  {e.type}  [{e.start}:{e.end}]", e.score) for e in self.entities]


class Tagger(Task[TagOptions, TagPrediction], ReadsWindows):
    """See `TagOptions`; the head is `TokenClassifier`'s (BERT, section 5.3) or `CrfTagger`'s.

    The first piece of each word has a label, the others have none and are not looked at.
    """

    name: ClassVar[str] = "tag"
    options_type: ClassVar[type[TagOptions]] = TagOptions
    best_by: ClassVar[str] = "f1"

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

    @property
    def head(self) -> str:
        """With a field or without."""
        return "token_classification_crf" if self.options.crf else "token_classification"

    @property
    def inputs(self) -> dict[str, str]:
        """`tokens`."""
        return {"tokens": "a text, or the list of its words"}

    @property
    def targets(self) -> dict[str, str]:
        """`ner_tags`."""
        return {"ner_tags": "the tag of each word"}

    @property
    def joint(self) -> str:
        """What stands between words."""
        return "" if self.characters else " "

    @property
    def truncation_note(self) -> str:
        """Sentences are not, words may be."""
        return "had a word longer than a window, which was cut"

    def fit(self, records: Records) -> None:
        """Find the types, the scheme, and whether words are characters.

        Raises:
            DataError: no record has an entity; or tags are not as they should be.
        """
        tags = [self._raw_tags(records, row) for row in range(len(records))]
        given = self.options.data_scheme
        self.data_scheme = find_scheme(tags) if given == "auto" else given
        words = [w for row in records.rows for w in row["tokens"] if isinstance(w, str)]
        self.characters = sum(len(word) == 1 for word in words) > 0.9 * len(words)
        named = self.options.labels or records.categories.get("ner_tags")
        seen = (tag for own in tags for tag in own)
        types = dict.fromkeys(split_tag(tag)[1] for tag in (named or sorted(set(seen))))
        types.pop("", None)
        if not types:
            raise DataError(
                f"{records.origin}, column 'ner_tags': there is no entity, all words are O",
                "Is it the right column? (data.columns.ner_tags=COLUMN)",
            )
        self.labels = labels_of(types, self.options.scheme)

    def _raw_tags(self, records: Records, row: int) -> list[str]:
        """The tags of a record as texts."""
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
        names = self.options.labels or records.categories.get("ner_tags")
        found = []
        for item, tag in enumerate(value):
            if isinstance(tag, int) and not isinstance(tag, bool) and names is not None:
                tag = names[tag] if 0 <= tag < len(names) else tag
            if not isinstance(tag, str) or not is_tag(tag):
                hint = "Tags are O, or B-, I-, E-, S- (L-, U-, M-) and a type, such as B-PER."
                if isinstance(tag, int):
                    hint = (
                        "Name the tags in the order of their numbers: task.labels=[O, B-PER, ...]"
                    )
                raise DataError(
                    f"{records.where(row, 'ner_tags', item)}: {tag!r} is no tag of an entity", hint
                )
            found.append(tag)
        return found

    def _spelled(self, records: Records, row: int, ids: Mapping[str, int]) -> list[str]:
        """The tags of a record's words as the model has them."""
        tags, found = self._raw_tags(records, row), []
        for item, tag in enumerate(write(spans(tags), len(tags), self.options.scheme)):
            own = spelled(tag, ids)
            if own is None:
                kinds, kind = types_of(self.labels), split_tag(tag)[1]
                said = f"unknown type '{kind}'"
                hint = did_you_mean(kind, kinds)
                if tag == OUTSIDE or kind in kinds:
                    said = f"the model has no tag '{tag}'"
                    hint = f"It has: {', '.join(self.labels)}."
                raise DataError(
                    f"{records.where(row, 'ner_tags', item)}: {said}",
                    f"{hint} Repair the data, or train with data that has it.",
                )
            found.append(own)
        return found

    def _remark(self, records: Records, row: int) -> Repaired | None:
        """What is wrong with the order of a record's tags."""
        tags = self._raw_tags(records, row)
        at = malformed(tags, self.data_scheme)
        if at is None:
            return None
        after = f"after {tags[at - 1]}" if at else "at the beginning"
        return Repaired(
            row,
            f"{records.where(row, item=at)}: {tags[at]} {after} is not in {self.data_scheme}; read "
            "as conlleval does",
        )

    def features(
        self, records: Records, rows: range, tokenizer: Tokenizer, *, with_targets: bool
    ) -> Iterable[Feature | Skipped | Repaired]:
        """The windows of each sentence; one without words gives nothing to learn or to score."""
        before, after = around(tokenizer.engine.encode("a"))
        room = self.options.max_length - len(before) - len(after)
        unknown = tokenizer.special_id("unk_token") or 0
        ids = {label: i for i, label in enumerate(self.labels)}
        words = [words_of(records, row, characters=self.characters) for row in rows]
        encoded = tokenizer.encode_words(words)
        for row, own, encoding in zip(rows, words, encoded, strict=True):
            labels = None
            if with_targets:
                tags = self._spelled(records, row, ids)
                labels = np.array([ids[tag] for tag in tags], dtype=np.int32)
                if not own:
                    yield Skipped(row, "no words")
                    continue
                if (remark := self._remark(records, row)) is not None:
                    yield remark
            found = pieces_of(encoding.ids, encoding.word_ids, len(own), room, unknown)
            starts = np.cumsum([0, *found.sizes])
            for window in windows(found.sizes, room, self.options.overlap):
                low, high = starts[window.start], starts[window.end]
                tokens = np.concatenate([before, found.ids[low:high], after])
                counted = np.arange(window.first, window.stop)
                places = starts[counted] - low + len(before)
                targets: dict[str, Any] = {
                    WORD: np.full(len(tokens), -1, dtype=np.int32),
                    BEGINS: window.first == 0,
                    ENDS: window.stop == len(own),
                }
                targets[WORD][places] = counted
                if labels is not None:
                    targets[LABEL] = np.full(len(tokens), -1, dtype=np.int32)
                    targets[LABEL][places] = labels[counted]
                yield Feature(
                    cast(Sequence[int], tokens), [0] * len(tokens), targets, row, found.cut
                )

    def build(self, backbone: Backbone) -> nn.Module:
        """A linear map on each word's first piece; with `crf` a field on top."""
        options = self.options
        more = {"crf_rate": options.crf_rate} if options.crf else {}
        return build_head(backbone, self.head, len(self.labels), dropout=options.dropout, **more)

    def forward(self, model: nn.Module, batch: PackedBatch) -> TagScores:
        """Scores of the words; nothing is computed for the other tokens in the last layer."""
        select, targets = batch.where(batch.targets[WORD] >= 0), batch.targets
        if not self.options.crf:
            return TagScores(model(batch, select=select))
        more: dict[str, Tensor] = {}
        if LABEL in targets:
            labels = targets[LABEL][select.rows].long()
            more = {"labels": labels, "begins": targets[BEGINS], "ends": targets[ENDS]}
        found: TagScores = model(batch, select=select, **more)
        return found

    def loss(self, outputs: TagScores, batch: PackedBatch) -> Loss:
        """Cross-entropy, or minus the log-likelihood of the field; counted in words."""
        labels = batch.targets[LABEL]
        labels = labels[batch.targets[WORD] >= 0].long()
        if outputs.likelihood is not None:
            return Loss(-outputs.likelihood.sum(), len(labels))
        options = self.options
        total, parts = cross_entropy(
            outputs.logits, labels, options.label_smoothing, options.z_loss
        )
        return Loss(total, len(labels), parts)

    def predict(self, outputs: TagScores, batch: PackedBatch) -> list[WindowTags]:
        """The scores of each window's words."""
        return window_tags(outputs, batch.where(batch.targets[WORD] >= 0).layout.lengths)

    def combine(self, parts: Sequence[WindowTags], record: Mapping[str, Any]) -> TagPrediction:
        """The words of all windows in their order, and the entities they make up."""
        given = record["tokens"]
        ((labels, probabilities),) = decode([parts], self.labels, self.options.scheme)
        tags = [self.labels[label] for label in labels]
        sure = probabilities[np.arange(len(labels)), labels]
        if isinstance(given, str):
            places = split_words(given, characters=self.characters)
        else:
            places = [(i, i + 1) for i in range(len(given))]
        found = []
        for span in spans(tags):
            start, end = places[span.start][0], places[span.end - 1][1]
            part = given[start:end]
            text = part if isinstance(part, str) else self.joint.join(part)
            score = float(sure[span.start : span.end].mean())
            found.append(Entity(span.type, text, score, start, end))
        return TagPrediction(tuple(found), None if isinstance(given, str) else tuple(tags))

    def each_loss(self, outputs: TagScores, batch: PackedBatch) -> EachLoss:
        """As `loss`, of each window, counted in words."""
        select = batch.where(batch.targets[WORD] >= 0)
        counts = torch.tensor(select.layout.lengths)
        if outputs.likelihood is not None:
            return EachLoss(-outputs.likelihood.detach(), counts)
        labels = batch.targets[LABEL][select.rows].long()
        each = F.cross_entropy(outputs.logits.detach().float(), labels, reduction="none")
        return EachLoss(sum_by_sequence(each, select.layout), counts)

    def grader(self, records: Records) -> Callable[[TagPrediction, int], Grade]:
        """Entities beside those of the data."""

        ids = {label: i for i, label in enumerate(self.labels)}

        def tags_of(row: int) -> list[str]:
            return self._spelled(records, row, ids)

        return tag_grader(records, tags_of, self.labels, self.joint)

    def figures(self, sums: Array) -> dict[str, Array]:
        """Loss; precision, recall and F1 of entities; the share of right tags."""
        right, guessed, true = np.split(sums[..., 2:-2], 3, axis=-1)
        accuracy = sums[..., -2] / np.maximum(sums[..., -1], 1)
        found = entity_figures(right, guessed, true)
        return {**super().figures(sums), **found, "accuracy": accuracy}

    def metrics(self, features: Features | None = None) -> TagMetrics:
        """Precision, recall and F1 of entities, as conlleval has them."""
        return TagMetrics(self.labels, self.options.scheme)

    def config_entries(self) -> dict[str, Any]:
        """`id2label`, `label2id`; and that there is a field."""
        found: dict[str, Any] = {
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }
        return {**found, CRF: True} if self.options.crf else found

    def state(self) -> dict[str, Any]:
        """The labels, and how the training data were."""
        return {
            "labels": self.labels,
            "characters": self.characters,
            "data_scheme": self.data_scheme,
        }

    def with_state(self, state: Mapping[str, Any]) -> Self:
        """With the labels of an earlier training."""
        return type(self)(
            self.options,
            stored_labels(state["labels"]),
            characters=bool(state["characters"]),
            data_scheme=state["data_scheme"],
        )

    def output_meaning(self) -> dict[str, Any]:
        """The tags, in the order of the outputs."""
        return {"labels": self.labels}

    def feature_key(self) -> Any:
        """Features also depend on the word boundaries and on the scheme of the data."""
        return [*super().feature_key(), self.characters, self.data_scheme]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """A transformers `...ForTokenClassification`, with the labels of its `id2label`."""
        architecture = str((config.get("architectures") or [""])[0])
        if not architecture.endswith("ForTokenClassification"):
            return None
        labels = published_labels(config)
        length = max(8, usual_length(config, 256))
        options = TagOptions.of_length(length, scheme_of(labels), crf=config.get(CRF) is True)
        return cls(options, labels)
