from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.batch import PackedBatch
from pretune.tasks.question_answering.windows import (
    WindowSpans,
    allowed,
    best_spans,
    merged,
    span_loss,
)

#: Of three windows: the length, where the passage begins and ends, the answer's ends.
SHAPES = [(9, 4, 8, 5, 6), (5, 3, 4, 0, 0), (12, 3, 11, 3, 10)]


def packed(shapes: list[tuple[int, int, int, int, int]]) -> PackedBatch:
    chance = np.random.default_rng(0)
    return PackedBatch.of(
        [chance.integers(5, 60, shape[0]).tolist() for shape in shapes],
        segments=[[0] * s[1] + [1] * (s[0] - s[1]) for s in shapes],
        targets={
            "passage": [s[1] for s in shapes],
            "passage_end": [s[2] for s in shapes],
            "start": [s[3] for s in shapes],
            "end": [s[4] for s in shapes],
            "first_char": [[3 * i for i in range(s[0])] for s in shapes],
            "end_char": [[3 * i + 2 for i in range(s[0])] for s in shapes],
        },
    )


@pytest.fixture(scope="module")
def theirs(tiny_folder: Path) -> Any:
    from transformers import BertForQuestionAnswering

    torch.manual_seed(0)
    return BertForQuestionAnswering.from_pretrained(tiny_folder).eval()


def their_loss(model: Any, batch: PackedBatch, *, masked: bool) -> torch.Tensor:
    """The sum of what transformers gives for each window by itself."""
    total = torch.zeros(())
    for i, (tokens, segments) in enumerate(
        zip(
            batch.tokens.split(list(batch.layout.lengths)),
            batch.segments.split(list(batch.layout.lengths)),  # type: ignore[union-attr]
            strict=True,
        )
    ):
        ends = {f"{name}_positions": batch.targets[name][i : i + 1] for name in ("start", "end")}
        found = model(tokens[None], token_type_ids=segments[None], **ends)
        if not masked:
            total = total + found.loss
            continue
        low, high = int(batch.targets["passage"][i]), int(batch.targets["passage_end"][i])
        keep = [0, *range(low, high)]
        for name, logits in (("start", found.start_logits), ("end", found.end_logits)):
            place = keep.index(int(batch.targets[name][i]))
            total = total - logits[0, keep].log_softmax(0)[place] / 2
    return total


@pytest.mark.parametrize("masked", [True, False])
def test_the_loss_is_that_of_transformers(theirs: Any, masked: bool) -> None:
    """With every token allowed it is theirs; else theirs with the others left out."""
    from pretune.bundle.bundle import load
    from pretune.tasks.question_answering.answer import Answerer, AnswerOptions

    batch = packed(SHAPES)
    bundle = load(theirs.name_or_path, task=Answerer(AnswerOptions.of_length(32)))
    with torch.no_grad():
        classifier = bundle.model.get_submodule("classifier")
        classifier.weight.copy_(theirs.qa_outputs.weight)  # type: ignore[union-attr, operator]
        classifier.bias.copy_(theirs.qa_outputs.bias)  # type: ignore[union-attr, operator]
        logits = bundle.model.eval()(batch)
        mask = allowed(batch) if masked else torch.ones(batch.num_tokens, dtype=torch.bool)
        each, known = span_loss(logits, batch, mask)
        total, count = each.sum(), int(known.sum())
        expected = their_loss(theirs, batch, masked=masked)
    assert count == 3
    assert float(total) == pytest.approx(float(expected), rel=1e-5)
    if masked and bundle.task is not None:
        assert float(bundle.task.loss(logits, batch).sum) == float(total)


def test_only_the_passage_and_the_first_token_compete() -> None:
    batch = packed(SHAPES)
    expected = [
        i == 0 or low <= i < high for length, low, high, *_ in SHAPES for i in range(length)
    ]
    assert allowed(batch).tolist() == expected


def test_gradients_are_zero_where_nothing_competes_and_right_elsewhere() -> None:
    batch = packed(SHAPES)
    torch.manual_seed(0)
    logits = (30 * torch.randn(batch.num_tokens, 2)).double().requires_grad_()
    mask = allowed(batch)
    total = span_loss(logits, batch, mask)[0].sum()
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient[~mask].abs().max() == 0
    by_hand = torch.zeros_like(gradient)
    for row, (length, *_, first, last) in enumerate(SHAPES):
        start = int(batch.cu_seqlens[row])
        part = slice(start, start + length)
        for side, place in enumerate((first, last)):
            scores = logits[part, side].masked_fill(~mask[part], -torch.inf)
            by_hand[part, side] = scores.softmax(0).detach() / 2
            by_hand[start + place, side] -= 0.5
    assert torch.allclose(gradient, by_hand, atol=1e-6)


def test_windows_whose_answer_is_unknown_do_not_count() -> None:
    known, some = packed(SHAPES[:1]), packed([SHAPES[0], (*SHAPES[1][:3], -1, -1)])
    logits = torch.randn(some.num_tokens, 2)
    expected = span_loss(logits[: known.num_tokens], known, allowed(known))
    found = span_loss(logits, some, allowed(some))
    assert found[1].tolist() == [True, False]
    assert float(found[0].sum()) == pytest.approx(float(expected[0].sum()))


@pytest.mark.parametrize("longest", [1, 3, 30])
@pytest.mark.parametrize("count", [1, 4, 100])
def test_the_best_spans_are_the_best_of_all(longest: int, count: int) -> None:
    batch = packed([*SHAPES, (4, 3, 3, 0, 0)])
    torch.manual_seed(0)
    logits = torch.randn(batch.num_tokens, 2)
    found = best_spans(logits, batch, longest=longest, count=count)
    for row, one in enumerate(found):
        base = int(batch.cu_seqlens[row])
        low, high = (int(batch.targets[name][row]) for name in ("passage", "passage_end"))
        start, end = logits[base:, 0].tolist(), logits[base:, 1].tolist()
        spans = [
            (start[i] + end[j], [3 * i, 3 * j + 2])
            for i, j in itertools.product(range(low, high), repeat=2)
            if i <= j < i + longest
        ]
        spans.sort(key=lambda span: -span[0])
        assert one.scores.tolist() == pytest.approx([s for s, _ in spans[:count]])
        assert one.chars.tolist() == [chars for _, chars in spans[:count]]
        assert one.null == pytest.approx(start[0] + end[0])


SPANS = st.lists(
    st.tuples(st.integers(-5, 5), st.integers(0, 3), st.integers(4, 6)), max_size=12
).map(
    lambda rows: WindowSpans(
        np.array([float(r[0]) for r in rows]),
        np.array([r[1:] for r in rows], dtype=np.int64).reshape(-1, 2),
        float(sum(r[0] for r in rows)),
    )
)


@given(st.lists(SPANS, min_size=1, max_size=4), st.integers(1, 8))
def test_windows_together(parts: list[WindowSpans], count: int) -> None:
    best: dict[tuple[int, int], float] = {}
    for part in parts:
        for score, (a, b) in zip(part.scores.tolist(), part.chars.tolist(), strict=True):
            best[a, b] = max(best.get((a, b), -99.0), score)
    expected = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:count]
    found = merged(parts, count)
    assert found.scores.tolist() == [score for _, score in expected]
    assert [tuple(row) for row in found.chars.tolist()] == [place for place, _ in expected]
    assert found.null == min(part.null for part in parts)
