"""Where and how precisely a model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pretune
from pretune.bundle.bundle import load
from pretune.errors import RunError
from pretune.inference import embed
from pretune.inference.runtime import (
    check_precision,
    inference_context,
    precision_context,
    usual_batch_tokens,
)
from pretune.models import kernels, packed
from tests.inference.test_embed import TEXTS

cpu = torch.device("cpu")


@pytest.mark.parametrize("precision", ["auto", "float32", "bf16", "int8"])
def test_known_precisions(precision: str) -> None:
    check_precision(precision, cpu)


def test_mistakes() -> None:
    with pytest.raises(RunError, match="no precision is called 'in8'") as caught:
        check_precision("in8", cpu)
    assert "int8" in str(caught.value.hint)
    with pytest.raises(RunError, match="int8 is for a CPU, not for cuda"):
        check_precision("int8", torch.device("cuda"))


@torch.no_grad()
def test_what_each_precision_does() -> None:
    def seen(context: object, precision: str) -> tuple[str | None, bool]:
        with context(cpu, precision):  # type: ignore[operator]
            return packed.active(), torch.is_autocast_enabled("cpu")

    names = ("auto", "float32", "bf16", "int8")
    answering = [seen(inference_context, name) for name in names]
    assert answering == [("float32", False), ("float32", False), (None, True), ("int8", False)]
    # In training, weights do not stay as they are.
    training = [seen(precision_context, name) for name in names]
    assert training == [(None, False), (None, False), (None, True), ("int8", False)]


def test_vectors_in_8_bits(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    exact = pretune.embed(load(tiny_folder), TEXTS)
    rounded = pretune.embed(load(tiny_folder), TEXTS, precision="int8")
    assert not np.array_equal(exact, rounded)
    # Cosines of vectors of length 1.
    assert ((exact * rounded).sum(1) > 0.995).all()


def test_a_cpu_answers_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for threads, tokens in ((1, 1024), (2, 2048), (64, 8192)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert usual_batch_tokens(cpu) == tokens
        assert usual_batch_tokens(torch.device("cuda")) == 8192


def test_who_asks_for_a_number_of_tokens_gets_it(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = embed.batches_by_length

    def noted(lengths: Any, tokens: int) -> Any:
        asked.append(tokens)
        return real(lengths, tokens)

    monkeypatch.setattr(embed, "batches_by_length", noted)
    for given in (None, 7):
        pretune.embed(tiny_folder, TEXTS, device="cpu", batch_tokens=given)
    assert asked == [usual_batch_tokens(torch.device("cpu")), 7]
    with pytest.raises(ValueError, match="must be positive"):
        pretune.embed(tiny_folder, TEXTS, device="cpu", batch_tokens=0)
