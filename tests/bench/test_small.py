"""What students of bench/small.py read beside labelled sentences."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from small import with_unlabelled


def test_unlabelled_texts_are_parts_of_sentences_and_two_put_together(tmp_path: Path) -> None:
    source = tmp_path / "train.tsv"
    source.write_text("sentence\tlabel\na b c d e f\t1\nu v w x y z\t0\n", encoding="utf-8")
    target = with_unlabelled(source, tmp_path / "run" / "more.tsv", 4, 6)
    lines = target.read_text(encoding="utf-8").splitlines()
    assert lines[:3] == source.read_text(encoding="utf-8").splitlines()
    new = [line.split("\t") for line in lines[3:]]
    assert {label for _, label in new} == {""}
    texts = [text for text, _ in new]
    assert len(set(texts)) == len(texts) >= 8
    # A part goes on without a gap; a mixture does so twice.
    runs = [text.split(" ") for text in texts]
    jumps = [sum(ord(b) - ord(a) != 1 for a, b in pairwise(run)) for run in runs]
    assert set(jumps) == {0, 1}
    assert with_unlabelled(source, tmp_path / "again.tsv", 4, 6).read_bytes() == target.read_bytes()
