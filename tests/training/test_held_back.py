"""A held-back share of records that belong together: whole groups, and no more than the share."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.records import Records
from pretune.recipe.recipe import Recipe
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.tagging.tag import Tagger, TagOptions
from pretune.training.data import _fill, read_data, stratified
from pretune.training.run_folder import RunFolder


@pytest.mark.parametrize("seed", range(4))
def test_a_frequent_target_does_not_take_the_training_data(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    pairs = [(f"Satz {i}", "OK." if draw.random() < 0.6 else f"Sentence {i}.") for i in range(1000)]
    text = "".join(f"{source}\t{target}\n" for source, target in [("source", "target"), *pairs])
    (tmp_path / "pairs.tsv").write_text(text, encoding="utf-8")
    recipe = Recipe.load(
        "translate", {"data.train": str(tmp_path / "pairs.tsv"), "data.validation": 0.05}
    )
    train, held = read_data(recipe)
    assert held is not None
    assert (len(train), len(held)) == (950, 50)
    assert not {row["target"] for row in train.rows} & {row["target"] for row in held.rows}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_groups_are_filled_in_without_exceeding_the_share(sizes: list[int], count: int) -> None:
    taken = _fill(np.array(sizes), count)
    total = sum(sizes[place] for place in taken)
    if min(sizes) > count:
        assert total == min(sizes)
        return
    assert total <= count
    left = [size for place, size in enumerate(sizes) if place not in taken]
    assert total == count or all(total + size > count for size in left)
    assert taken == sorted(set(taken))


@given(
    st.lists(st.sets(st.sampled_from("abcdef"), max_size=3), min_size=2, max_size=60),
    st.integers(1, 30),
)
def test_no_label_loses_its_last_record(labels: list[set[str]], count: int) -> None:
    picked = stratified(labels, count)
    assert picked == sorted(set(picked)) == stratified(labels, count)
    assert len(picked) <= count
    left = [own for row, own in enumerate(labels) if row not in picked]
    assert set().union(*left) == set().union(*labels)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1), st.data())
def test_each_label_is_held_back_in_proportion(sizes: dict[str, int], data: st.DataObject) -> None:
    labels = [[label] for label, size in sizes.items() for _ in range(size)]
    chance = data.draw(st.randoms(use_true_random=False))
    chance.shuffle(labels)
    count = round(data.draw(st.sampled_from([0.1, 0.2, 0.5])) * len(labels))
    picked = stratified(labels, count)
    held = Counter(labels[row][0] for row in picked)
    assert len(picked) == min(count, len(labels) - len(sizes))
    # Seats in a parliament by Sainte-Laguë: no label has one that another deserves more.
    for label, size in sizes.items():
        for other, others in sizes.items():
            if held[label] and held[other] < others - 1:
                assert (held[label] - 0.5) / size <= (held[other] + 0.5) / others


class TestLabels:
    """A label that occurs once, and the default that holds a tenth of the records back."""

    def recipe(self, path: Path, labels: list[Any], **task: Any) -> Recipe:
        column = "labels" if task["name"] == "multilabel" else "label"
        rows = [{"text": f"good {i}", column: label} for i, label in enumerate(labels)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return Recipe.of({"task": task, "data": {"train": str(path)}})

    @pytest.mark.parametrize("place", range(0, 60, 6))
    def test_that_occurs_once_stays_in_training(self, tmp_path: Path, place: int) -> None:
        labels = ["a", "b", "c"] * 20
        labels[place] = "rare"
        recipe = self.recipe(tmp_path / "x.jsonl", labels, name="classify")
        train, held = read_data(recipe)
        assert isinstance(train, Records)
        assert isinstance(held, Records)
        assert (len(train), len(held)) == (54, 6)
        assert Counter(row["label"] for row in held.rows) == {"a": 2, "b": 2, "c": 2}
        assert held.part == "held back: 0.1 of the records, in proportion to the labels"
        assert read_data(recipe.changed({"seed": 5}))[1] == held

    def test_that_occur_once_are_all_known(self, tmp_path: Path) -> None:
        """Where no label can be held back, records are, at random."""
        recipe = self.recipe(tmp_path / "x.jsonl", [f"l{i}" for i in range(20)], name="classify")
        train, held = read_data(recipe)
        assert isinstance(train, Records)
        assert isinstance(held, Records)
        assert held.part == "held back: 0.1 of the records, at random"
        task = Classify(ClassifyOptions())
        task.fit(train)
        assert len(task.labels) == 20

    @pytest.mark.parametrize("changes", [{"data.limit": 5}, {"data.stratify": False}])
    def test_that_only_validation_has_are_known(
        self, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        recipe = self.recipe(tmp_path / "x.jsonl", [*"ab" * 30, *"cdefghij" * 2], name="classify")
        train, held = read_data(recipe.changed({"data.validation": 0.5, **changes}))
        assert isinstance(train, Records)
        assert isinstance(held, Records)
        task = Classify(ClassifyOptions())
        task.fit(train)
        labels = {row["label"] for part in (train, held) for row in part.rows}
        assert labels - {row["label"] for row in train.rows}
        assert task.labels == sorted(labels)

    @pytest.mark.parametrize(
        "rows", [[["a"], ["b", "a"], []], ["a", "b|a", ""], [[1, 0], [1, 1], [0, 0]]], ids=str
    )
    def test_several_of_a_record_are_held_back_in_proportion(
        self, tmp_path: Path, rows: list[Any]
    ) -> None:
        recipe = self.recipe(tmp_path / "x.jsonl", rows * 20, name="multilabel")
        _, held = read_data(recipe)
        assert isinstance(held, Records)
        assert [[row["labels"] for row in held.rows].count(own) for own in rows] == [2, 2, 2]

    def test_of_a_single_sentence_are_known(self, tmp_path: Path) -> None:
        rows = [{"tokens": ["x"], "ner_tags": [f"B-T{i}"]} for i in range(40)]
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        train, held = read_data(Recipe.of({"task": "tag", "data": {"train": str(path)}}))
        assert isinstance(train, Records)
        assert isinstance(held, Records)
        task = Tagger(TagOptions())
        task.fit(train)
        for row in held.rows:
            assert set(row["ner_tags"]) <= set(task.labels)


def test_an_earlier_run_keeps_what_it_held_back(tmp_path: Path) -> None:
    """Recipes of runs from before the option lack it; theirs was the split at random."""
    recipe = Recipe.of({"task": "classify", "data": {"train": "x.jsonl"}})
    text = recipe.to_yaml()
    assert "  stratify: true\n" in text
    for saved, expected in ((text, True), (text.replace("  stratify: true\n", ""), False)):
        (tmp_path / "recipe.yaml").write_text(saved, encoding="utf-8")
        assert RunFolder(tmp_path).recipe().data.stratify is expected
        # With it the recipe is known as that of the run.
        assert RunFolder(tmp_path).holds(recipe.changed({"data.stratify": expected}))
