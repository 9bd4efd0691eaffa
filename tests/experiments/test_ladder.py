"""The ladder: what is measured, what is kept, what is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretune.bundle.bundle import load
from pretune.checkpoints.ngram_files import load_ngram
from pretune.data.records import Records
from pretune.errors import DataError, PretuneError, RunError
from pretune.experiments import ladder as ladder_module
from pretune.experiments.ladder import RUNGS, Climb, LadderOptions, score_ngram, token_texts
from pretune.experiments.plan import Speed
from pretune.models.classics.ngram import NGram
from pretune.models.heads.vocabulary import score_tokens
from pretune.render.experiment_views import ladder_view
from pretune.render.ladder_chart import ladder_csv, write_ladder
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.features import featurize
from pretune.tokenizers.train import train_tokenizer
from pretune.training.validation import evaluate_features


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    chance = random.Random(0)
    words = ["the ", "cat ", "sat ", "on ", "a ", "mat.\n", "Über "]
    path = tmp_path / "cats.txt"
    path.write_text("".join(chance.choices(words, k=500)), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rungs, only narrower."""
    for name, rung in RUNGS.items():
        sizes = {"embedding_size": 8, "hidden_size": 8}
        if name == "gpt":
            sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2}
        if rung.start is not None:
            config = {**(rung.config or {}), **sizes}
            monkeypatch.setitem(RUNGS, name, replace(rung, config=config))


def options(corpus: Path, **changes: Any) -> LadderOptions:
    usual = {"updates": 2, "rungs": ("ngram", "rnn"), "device": "cpu"}
    output = corpus.parent / "ladder"
    return LadderOptions(corpus=str(corpus), output=output, **{**usual, **changes})


def test_every_rung_is_climbed_and_measured_on_the_same_text(corpus: Path) -> None:
    climb = Climb(options(corpus, rungs=tuple(RUNGS)), quiet=True)
    ladder = climb.run()
    assert [rung.name for rung in ladder.rungs] == list(RUNGS)
    text = corpus.read_text(encoding="utf-8")
    assert ladder.characters + ladder.held_back == len(text)
    assert text.endswith("".join(climb.held_out))
    # The figure of a rung is that of its model on that text, all at once.
    for rung in ladder.rungs[1:]:
        bundle = load(rung.folder)
        rows = [{"text": held_out} for held_out in climb.held_out]
        records = Records(rows=rows, origin="x", columns=("text",))
        found = evaluate_features(
            bundle.task, bundle.model, featurize(bundle.task, records, bundle.tokenizer)
        )
        assert rung.bits_per_character == pytest.approx(found.metrics["bits_per_character"])
        assert rung.parameters == sum(p.numel() for p in bundle.model.parameters())
        assert len(rung.sample) == ladder_module.SAMPLE_LENGTH
    counted = ladder.rungs[0]
    assert counted.updates == 0
    assert 0 < counted.bits_per_character < min(r.bits_per_character for r in ladder.rungs[1:])


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_an_ngram_is_measured_as_a_neural_model_would_be(kind: str) -> None:
    """Its own conditional probabilities, put where a neural model's logits would be."""
    texts = ["the cat sat on the mat. über the cat", "a cat, a mat"]
    size = None if kind == "char" else 260
    tokenizer = train_tokenizer(texts, kind, size, **{"unknown": False} if kind == "char" else {})
    rows = [{"text": text} for text in texts]
    task = CausalLm(CausalLmOptions(max_length=5))
    features = featurize(task, Records(rows=rows, origin="x", columns=("text",)), tokenizer)
    whole = token_texts(features)
    model = NGram.fit(whole, order=3, vocab_size=tokenizer.vocab_size)

    class Counted(torch.nn.Module):
        def forward(self, batch: Any, labels: Any, **how: Any) -> Any:
            rows = [
                model.distribution(text[: place + 1])
                for text in whole
                for place in range(len(text) - 1)
            ]
            table = torch.from_numpy(np.log(np.stack(rows))).float()
            own = {tuple(f): i for i, f in enumerate(blocks)}
            parts = torch.split(batch.tokens, list(batch.layout.lengths))
            order = [own[tuple(part.tolist())] for part in parts]
            starts = features.starts
            picked = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in order])
            return score_tokens(table[picked], torch.eye(table.shape[1]), None, labels)

    blocks = [
        features.tokens[a:b].tolist()
        for a, b in zip(features.starts, features.starts[1:], strict=False)
    ]
    expected = evaluate_features(task, Counted(), features).metrics
    bits, perplexity = score_ngram(model, features)
    assert bits == pytest.approx(expected["bits_per_character"], rel=1e-5)
    assert perplexity == pytest.approx(expected["perplexity"], rel=1e-5)


def test_what_is_finished_is_kept_unless_something_changed(corpus: Path) -> None:
    first = Climb(options(corpus), quiet=True).run()
    folder = corpus.parent / "ladder"
    before = (folder / "rnn" / "result.json").stat().st_mtime_ns
    said: list[str] = []
    assert Climb(options(corpus), quiet=True, say=said.append).run().rungs == first.rungs
    assert (folder / "rnn" / "result.json").stat().st_mtime_ns == before
    assert sum("kept" in line for line in said) == 2
    again = Climb(options(corpus, updates=3), quiet=True).run()
    assert again.rungs[1].updates == 3
    with corpus.open("a", encoding="utf-8") as file:
        file.write("the end")
    said.clear()
    Climb(options(corpus, updates=3), quiet=True, say=said.append).run()
    assert sum("changed: anew" in line for line in said) == 2


def test_a_stopped_rung_goes_on(corpus: Path) -> None:
    from tests.training.outcomes import stopped_after

    whole = options(corpus, updates=5, rungs=("rnn",))
    expected = Climb(whole, quiet=True).run().rungs[0].bits_per_character
    other = LadderOptions(**{**vars(whole), "output": corpus.parent / "stopped"})
    with stopped_after(3):
        Climb(other, quiet=True).run()
    assert not (other.output / "rnn" / "result.json").exists()
    found = Climb(other, quiet=True).run().rungs[0]
    assert found.updates == 5
    assert found.bits_per_character == expected


def test_minutes_become_updates_by_the_pace_of_a_few(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = Speed("cpu", 5, 4096.0, None, 0.0)
    monkeypatch.setattr(ladder_module, "measure_speed", lambda recipe: speed)
    climb = Climb(options(corpus, updates=None, minutes=0.05, rungs=("rnn",)), quiet=True)
    assert climb.run().rungs[0].updates == 6  # 3 seconds, 2 updates a second


def test_what_is_written(corpus: Path) -> None:
    from rich.console import Console

    ladder = Climb(options(corpus), quiet=True).run()
    folder = corpus.parent / "ladder"
    write_ladder(ladder, folder)
    found = json.loads((folder / "ladder.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(ladder.to_dict()))
    assert (folder / "ladder.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(io.StringIO(ladder_csv(ladder))))
    assert [row["name"] for row in rows] == ["ngram", "rnn"]
    assert rows[0]["sample"] == ladder.rungs[0].sample
    assert float(rows[1]["bits_per_character"]) == ladder.rungs[1].bits_per_character
    console = Console(width=80)
    with console.capture() as capture:
        console.print(ladder_view(ladder))
    assert f"{ladder.rungs[0].bits_per_character:.3f}" in capture.get()
    assert load_ngram(folder / "ngram").order == 7
    assert math.isfinite(ladder.rungs[0].perplexity)


class TestRefusals:
    @pytest.mark.parametrize("text", ["", "  \n", "short", "x" * 900 + " " * 110])
    def test_too_little_text(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"a\.txt.*(no text|too few)"):
            Climb(options(path))
        assert not (tmp_path / "ladder").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rungs": ("lstn",)}, "no rung is called 'lstn'\n  Did you mean 'lstm'"),
            ({"rungs": ()}, "none is named"),
            ({"level": "word"}, "there is no 'word'"),
            ({"minutes": 1.0}, "not both"),
            ({"updates": 0}, "more than 0"),
        ],
    )
    def test_options(self, corpus: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(PretuneError) as caught:
            options(corpus, **changes)
        assert message in str(caught.value)

    def test_somebody_elses_folder(self, corpus: Path) -> None:
        (corpus.parent / "ladder").mkdir()
        (corpus.parent / "ladder" / "thesis.txt").write_text("mine", encoding="utf-8")
        with pytest.raises(RunError, match="no ladder; nothing is written"):
            Climb(options(corpus))
