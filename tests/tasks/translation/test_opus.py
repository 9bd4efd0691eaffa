"""OPUS-MT as published: what transformers translates with it, we do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pretune.bundle.bundle import load, save
from pretune.bundle.convert import convert
from pretune.errors import CheckpointError, Note
from pretune.inference.predict import Predictor
from tests.tasks.opus import SOURCES, TARGETS, write_model, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("opus")
    write_tokenizer(place)
    write_model(place, pickled=True)
    return place


def ours(folder: Path, **options: Any) -> list[str]:
    predictor = Predictor(load(folder, allow_pickle=True, options=options))
    return [answer.translation for answer in predictor.predict(predictor.records(SOURCES))]


@torch.no_grad()
def theirs(folder: Path, sources: list[str] = SOURCES, **search: Any) -> list[str]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    written = model.generate(**tokenizer(sources, return_tensors="pt", padding=True), **search)
    texts: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True)
    return texts


def changed(folder: Path, place: Path, **generation: Any) -> Path:
    """A copy that is asked in another way."""
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    file = place / "generation_config.json"
    entries = {**json.loads(file.read_text(encoding="utf-8")), **generation}
    file.write_text(json.dumps(entries), encoding="utf-8")
    return place


@pytest.mark.parametrize(
    "search",
    [
        {},
        pytest.param({"num_beams": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"num_beams": 6, "length_penalty": 0.6, "early_stopping": True, "max_length": 9},
            marks=pytest.mark.slow,
        ),
        {"renormalize_logits": False, "min_length": 7, "no_repeat_ngram_size": 1},
    ],
    ids=["published", "greedy", "early", "long"],
)
def test_translations_are_those_of_transformers(
    search: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Pads and masks there, packed rows here: token by token the same."""
    place = changed(folder, tmp_path, **search)
    found = ours(place)
    assert found == theirs(place)
    assert len(set(found)) > 2


def test_the_search_is_that_of_the_files(folder: Path) -> None:
    options = load(folder, allow_pickle=True).task.options
    assert (options.beams, options.max_written, options.length_ratio) == (4, 11, 0)
    assert options.forced_end
    assert options.renormalize
    assert len(options.never) == 1


@pytest.mark.slow
def test_older_releases_have_it_in_config_json(folder: Path, tmp_path: Path) -> None:
    place = changed(folder, tmp_path)
    search = json.loads((place / "generation_config.json").read_text(encoding="utf-8"))
    (place / "generation_config.json").unlink()
    file = place / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**search, **config, "num_beams": 3}), encoding="utf-8")
    assert load(place, allow_pickle=True).task.options.beams == 3
    assert ours(place) == theirs(place)


@pytest.mark.slow
def test_what_is_saved_opens_in_transformers_and_here(folder: Path, tmp_path: Path) -> None:
    wanted = ours(folder)
    again, converted = tmp_path / "again", tmp_path / "converted"
    again.mkdir()
    save(load(folder, allow_pickle=True), again)
    assert ours(again) == wanted == theirs(again)
    convert(folder, converted, allow_pickle=True)
    assert ours(converted) == wanted == theirs(converted)


@pytest.mark.slow
def test_the_language_is_a_part_of_the_text_or_an_option(folder: Path) -> None:
    asked = [f">>deu<< {text}" for text in SOURCES]
    found = ours(folder, prefix=">>deu<< ")
    assert found == theirs(folder, asked)
    assert found != ours(folder)


@pytest.mark.slow
def test_a_vocabulary_for_each_side(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, separate=True)
    write_model(tmp_path)
    bundle = load(tmp_path)
    assert bundle.tokenizer.two_vocabularies
    assert ours(tmp_path) == theirs(tmp_path)


@pytest.mark.slow
def test_it_is_trained_further(folder: Path, tmp_path: Path) -> None:
    from pretune.recipe.recipe import Recipe
    from pretune.training.run import train_recipe

    rows = ["en\tde", *(f"{a}\t{b}" for a, b in zip(SOURCES, TARGETS, strict=True))]
    data = tmp_path / "pairs.tsv"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    changes = {
        "model.from": str(folder),
        "model.allow_pickle": True,
        "model.train_tokenizer": None,
        "data.train": str(data),
        "data.validation": str(data),
        "data.columns": {"source": "en", "target": "de"},
        "task.max_length": 40,
        "train.max_steps": 2,
        "output": str(tmp_path / "run"),
    }
    result = train_recipe(Recipe.load("translate", changes), quiet=True)
    assert 0 <= result.metrics["bleu"] <= 100
    run = tmp_path / "run" / "best"
    assert sorted(path.name for path in run.glob("*.spm")) == ["source.spm", "target.spm"]
    sources = [source for source in SOURCES if len(source) < 30]
    predictor = Predictor(load(run, options={"length_ratio": 0.0, "max_written": 20}))
    found = [own.translation for own in predictor.predict(predictor.records(sources))]
    assert found == theirs(run, sources, max_new_tokens=20)


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ({"num_beams": 100_000}, "generation_config.json.*beams makes no sense"),
        ({"max_length": "long"}, "max_written makes no sense"),
        ({"bad_words_ids": [[10**6]]}, "never: 1000000 is no token"),
    ],
)
def test_what_makes_no_sense_is_named(
    generation: dict[str, Any], said: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said):
        load(changed(folder, tmp_path, **generation), allow_pickle=True)


def test_what_no_option_follows_is_told(folder: Path, tmp_path: Path) -> None:
    place = changed(folder, tmp_path, do_sample=True, bad_words_ids=[[1, 2]], forced_eos_token_id=5)
    with pytest.warns(Note, match="do_sample, bad_words_ids of several tokens, forced_eos"):
        load(place, allow_pickle=True)
