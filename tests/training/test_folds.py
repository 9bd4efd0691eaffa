"""Cross-validation: who is in which fold, and the runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.bundle.bundle import load
from pretune.errors import DataError, RecipeError, RunError
from pretune.experiments.out_of_fold import SUMMARY, TABLE, out_of_fold, write_out_of_fold
from pretune.inference.predict import Predictor
from pretune.recipe.recipe import Recipe
from pretune.recipe.schema import FoldSection
from pretune.render.folds_report import PAGE, write_folds_report
from pretune.training.data import read_data
from pretune.training.folds import fold_numbers
from pretune.training.several_runs import train_folds

Make = Callable[..., Recipe]


class TestFolds:
    @settings(max_examples=20)
    @given(st.lists(st.sampled_from("aaab"), min_size=5, max_size=60), st.integers(2, 5))
    def test_sizes_and_labels_differ_by_one_at_most(self, labels: list[str], folds: int) -> None:
        numbers = fold_numbers(len(labels), folds, [[label] for label in labels])
        for which in ("a", "b", "ab"):
            chosen = [
                n for n, label in zip(numbers.tolist(), labels, strict=True) if label in which
            ]
            counts = np.bincount(chosen, minlength=folds)
            assert counts.max() - counts.min() <= 1
            assert counts.sum() == len(chosen)

    @settings(max_examples=20)
    @given(st.lists(st.integers(0, 7), min_size=30, max_size=60), st.integers(2, 5))
    def test_groups_stay_whole_and_no_fold_is_empty(self, groups: list[int], folds: int) -> None:
        _, dense = np.unique(groups, return_inverse=True)
        if dense.max() + 1 < folds:
            return
        numbers = fold_numbers(len(groups), folds, None, dense)
        assert all(len({*numbers[dense == group].tolist()}) == 1 for group in set(dense.tolist()))
        assert {*numbers.tolist()} == {*range(folds)}

    def test_labels_of_groups_are_spread(self) -> None:
        # 12 groups of 5, half of them all "b": each of 3 folds gets two of either kind.
        groups = np.repeat(np.arange(12), 5)
        labels = [["b" if group % 2 else "a"] for group in groups.tolist()]
        numbers = fold_numbers(60, 3, labels, groups)
        counts = Counter(zip(numbers.tolist(), (own[0] for own in labels), strict=True))
        assert set(counts.values()) == {10}

    def test_the_order_of_the_data_does_not_matter_to_who_is_dealt_first(self) -> None:
        numbers = fold_numbers(10, 2)
        assert numbers.tolist() != [0, 1] * 5  # at random, not in turns
        assert numbers.tolist() == fold_numbers(10, 2).tolist()


def folded(make: Make, number: int, of: int = 3, group: str | None = None) -> Recipe:
    fold = {"number": number, "of": of, "group": group}
    return make(data__validation=None).changed({"data.fold": fold})


def test_every_record_is_validated_on_once(toy_recipe: Make) -> None:
    held, texts = [], None
    for number in (1, 2, 3):
        train, validation = read_data(folded(toy_recipe, number))
        assert validation is not None
        assert len(train) + len(validation) == 60
        held += [validation.where(row) for row in range(len(validation))]
        assert validation.part == f"held back: part {number} of 3"  # type: ignore[union-attr]
        texts = train.origin
    assert len(held) == len(set(held)) == 60
    assert texts is not None


class TestGroups:
    @pytest.fixture
    def grouped(self, toy_recipe: Make, tmp_path: Path) -> Make:
        lines = ["text\tlabel\twriter"]
        lines += [
            f"{w} film {i}\t{w}\t{'abcde'[i % 5]}" for i in range(15) for w in ("good", "bad")
        ]
        path = tmp_path / "written.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return lambda **more: toy_recipe(data__train=str(path), **more)

    def test_a_column_keeps_records_together(self, grouped: Make) -> None:
        for number in (1, 2, 3):
            train, validation = read_data(folded(grouped, number, group="writer"))
            writers = [{row["writer"] for row in part.rows} for part in (train, validation)]  # type: ignore[union-attr]
            assert not writers[0] & writers[1]
            assert writers[1]
            assert not any("not used" in note for note in train.notes)  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("of", "group", "told"),
        [
            (3, "writr", "no column 'writr' to group by\n.*'writer'"),
            (6, "writer", "5 values of 'writer' are too few for 6 parts"),
            (99, None, "30 records are too few for 99 parts"),
        ],
    )
    def test_what_cannot_be_split_is_said(
        self, grouped: Make, of: int, group: str | None, told: str
    ) -> None:
        with pytest.raises(DataError, match=told):
            read_data(folded(grouped, 1, of, group))


def test_a_recipe_with_its_own_validation_data_is_refused(toy_recipe: Make, toy_data: Path) -> None:
    recipe = toy_recipe(data__validation=str(toy_data))
    with pytest.raises(RecipeError, match=r"data\.validation: .*but --folds validates on parts"):
        train_folds(recipe, 2, quiet=True)
    with pytest.raises(RecipeError, match="fold says what is validated on"):
        toy_recipe().changed({"data.fold": {"number": 1, "of": 2}})
    with pytest.raises(RecipeError, match="there is no part 3 of 2"):
        folded(toy_recipe, 3, 2)


def test_a_cross_validation(toy_recipe: Make) -> None:
    """Its runs, what is left of a command that was stopped, and the files beside them."""
    recipe = toy_recipe(train__max_steps=1)
    result = train_folds(recipe, 2, quiet=True)
    folder = Path(recipe.output)
    assert result.numbers == (1, 2)
    values = [run.metrics["loss"] for run in result.runs]
    assert result.summary()["loss"][0] == pytest.approx(sum(values) / 2)
    # The same command trains nothing again.
    assert train_folds(recipe, 2, quiet=True).runs == result.runs
    with pytest.raises(RunError, match=r"fold-1: already holds .*of another recipe"):
        train_folds(recipe, 3, quiet=True)

    answers = out_of_fold(recipe, result, FoldSection(number=1, of=2))
    write_out_of_fold(folder, result, answers)
    write_folds_report(folder / PAGE, result, answers)
    rows = [json.loads(line) for line in (folder / TABLE).read_text().splitlines()]
    assert len(rows) == 60
    assert Counter(row["fold"] for row in rows) == {1: 30, 2: 30}
    # Each is answered by the run that did not see it.
    _, validation = read_data(folded(lambda **more: toy_recipe(train__max_steps=1, **more), 2, 2))
    assert validation is not None
    own = Predictor(load(folder / "fold-2")).predict(validation)  # type: ignore[arg-type]
    other = [row for row in rows if row["fold"] == 2]
    assert [a.to_dict()["label"] for a in own] == [row["predicted_label"] for row in other]
    right = sum(row["label"] == row["predicted_label"] for row in rows)
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["out_of_fold"]["accuracy"] == pytest.approx(right / 60)
    assert "loss" not in summary["out_of_fold"]
    assert summary["labels"]["suspects"] == sum(row["label_issue"] for row in rows)
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert "All out-of-fold answers together" in page
    assert "Labels that may be wrong" in page
