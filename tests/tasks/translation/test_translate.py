from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from pretune.bundle.bundle import Bundle, load
from pretune.data.batch import FeatureSet, Skipped
from pretune.errors import CheckpointError, DataError, RecipeError, RunError
from pretune.evaluation.explain import finished, integrated_gradients, loss_of
from pretune.inference.generate import TextGenerator
from pretune.inference.predict import Predictor
from pretune.tasks.features import featurize
from pretune.tasks.losses import NEXT, cross_entropy
from pretune.tasks.translation.translate import Translate, TranslateOptions
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.train import train_tokenizer
from pretune.training.validation import evaluate_features
from tests.tasks.translations import PAIRS, SIZES, records, saved, translator


@pytest.fixture(scope="module")
def bpe() -> Bundle:
    return translator()


@pytest.fixture(scope="module")
def wordpiece() -> Bundle:
    return translator("wordpiece")


class TestFeatures:
    def test_a_pair_is_a_source_and_what_the_decoder_reads(self, bpe: Bundle) -> None:
        tokenizer = bpe.tokenizer
        (feature,) = bpe.task.features(records(PAIRS[1:2]), range(1), tokenizer, with_targets=True)
        source, target = feature.choices
        end = "<|endoftext|>"
        ids = list(feature.tokens)
        assert tokenizer.decode(ids[:source], skip_special=False) == PAIRS[1][0] + end
        assert tokenizer.decode(ids[source:], skip_special=False) == end + PAIRS[1][1]
        following = feature.targets[NEXT][source:]
        assert len(feature.targets[NEXT]) == len(ids)
        assert tokenizer.decode(following, skip_special=False) == PAIRS[1][1] + end
        assert target == len(following)

    def test_wordpiece_begins_with_pad_and_ends_with_sep(self, wordpiece: Bundle) -> None:
        given = records(PAIRS[4:])
        (feature,) = wordpiece.task.features(
            given, range(1), wordpiece.tokenizer, with_targets=True
        )
        shown = wordpiece.tokenizer.tokens(list(feature.tokens))
        source, _ = feature.choices
        assert (shown[0], shown[source - 1], shown[source]) == ("[CLS]", "[SEP]", "[PAD]")
        assert wordpiece.tokenizer.tokens(feature.targets[NEXT][-1:]) == ["[SEP]"]

    def test_pairs_too_long_are_skipped_in_training_and_cut_in_evaluation(
        self, bpe: Bundle
    ) -> None:
        task = bpe.task
        long = [("Hund " * 30, "dog"), ("Hund", "dog " * 40), PAIRS[1]]
        found = list(task.features(records(long), range(3), bpe.tokenizer, with_targets=True))
        assert [type(item) is Skipped for item in found] == [True, True, False]
        assert "40 tokens (task.max_length)" in found[0].why
        kept = list(task.evaluation_features(records(long), range(3), bpe.tokenizer))
        assert [feature.truncated for feature in kept] == [True, True, False]
        assert max(max(feature.choices) for feature in kept) == 40
        end = bpe.model.backbone.config.eos_token_id
        assert kept[0].tokens[kept[0].choices[0] - 1] == end

    @pytest.mark.parametrize("evaluation", [False, True])
    @pytest.mark.parametrize("wrong", [("", "x"), ("x", "  "), ("x", None)])
    def test_a_pair_without_a_side_is_skipped(
        self, wrong: Any, evaluation: bool, bpe: Bundle
    ) -> None:
        given = records([PAIRS[0], wrong])
        features = featurize(bpe.task, given, bpe.tokenizer, evaluation=evaluation)
        assert isinstance(features, FeatureSet)
        assert features.skipped == (Skipped(1, "an empty text"),)

    def test_what_is_no_text_names_the_place(self, bpe: Bundle) -> None:
        with pytest.raises(DataError, match=r"pairs\.tsv, line 3, column 'source'"):
            featurize(bpe.task, records([PAIRS[0], (["x"], "y")]), bpe.tokenizer)


@torch.no_grad()
def test_the_loss_is_the_smoothed_cross_entropy_of_every_target(bpe: Bundle) -> None:
    given = records()
    features = featurize(bpe.task, given, bpe.tokenizer)
    batch = features.batch(np.arange(len(PAIRS)))
    bpe.model.train()
    bpe.model.backbone.embeddings.dropout.eval()
    outputs = bpe.task.forward(bpe.model.eval(), batch)
    loss = bpe.task.loss(outputs, batch)
    labels = batch.pairs[1].targets[NEXT]
    expected, parts = cross_entropy(bpe.model(batch), labels, smoothing=0.1)
    torch.testing.assert_close(loss.sum, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loss.parts["cross_entropy"], parts["cross_entropy"])
    assert loss.count == len(labels) == batch.pairs[1].num_tokens


def whole(text: str) -> str:
    return text.replace("\ufffd", "").strip()


def theirs(folder: Path) -> Any:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert type(model).__name__ == "MarianMTModel"
    assert model.generation_config.num_beams > 1
    return model.eval()


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
def test_searches_find_what_transformers_finds(
    kind: str, penalty: float, bpe: Bundle, wordpiece: Bundle, tmp_path: Path
) -> None:
    """The saved files, by transformers alone: its tokenizer, its model, its search."""
    bundle = {"bpe": bpe, "wordpiece": wordpiece}[kind]
    folder = saved(tmp_path / "model", bundle)
    model, tokenizer = theirs(folder), transformers.AutoTokenizer.from_pretrained(folder)
    changes = {"candidates": 3, "beams": 3, "length_penalty": penalty, "length_ratio": 0}
    mine = Predictor(load(folder, options={**changes, "max_length": 14}))
    found = mine.predict(mine.records([source for source, _ in PAIRS]))
    for (source, _), answer in zip(PAIRS, found, strict=True):
        inputs = tokenizer(source, return_tensors="pt")
        (ours,) = mine.task.features(
            records([(source, "")]), range(1), mine.bundle.tokenizer, with_targets=False
        )
        ours = list(ours.tokens)
        if len(ours) < 14:
            assert inputs["input_ids"][0].tolist() == ours
        expected = model.generate(
            torch.tensor([ours]),
            num_beams=3,
            num_return_sequences=3,
            length_penalty=penalty,
            max_new_tokens=14,
            output_scores=True,
            return_dict_in_generate=True,
        )
        scores = [score for _, score in answer.candidates]
        assert scores == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)
        texts = tokenizer.batch_decode(expected.sequences, skip_special_tokens=True)
        # Random bytes are no text: transformers shows half a character at the end, we do not.
        assert [whole(text) for text, _ in answer.candidates] == [whole(text) for text in texts]


@torch.inference_mode()
def test_greedy_is_the_uncached_slow_forward(bpe: Bundle) -> None:
    task = Translate(TranslateOptions(max_length=40, beams=1))
    task.build(bpe.backbone)
    task.bind(bpe.tokenizer)
    features = featurize(task, records(), bpe.tokenizer, with_targets=False)
    batch = features.batch(np.arange(len(PAIRS)), sort=False)
    outputs = task.write(bpe.model, task.forward(bpe.model, batch), batch)
    for i, (found,) in enumerate(outputs.written):
        source = features.batch(np.array([i])).tokens.tolist()
        target, limit = [bpe.model.opening[0]], min(40, 2 * len(source) + 10)
        while len(target) <= limit and (len(target) == 1 or target[-1] != task._end):
            hidden = bpe.backbone.decode(pack(target), bpe.backbone.encode(pack(source)))
            logits = hidden @ bpe.backbone.embeddings.output.T
            target.append(int(logits[-1].argmax()))
        assert list(found.tokens) == target[1:]


def pack(ids: list[int]) -> Any:
    from pretune.data.batch import PackedBatch

    return PackedBatch.of([ids])


@torch.inference_mode()
def test_a_forward_pass_writes_nothing(bpe: Bundle) -> None:
    features = featurize(bpe.task, records(), bpe.tokenizer, evaluation=True)
    outputs = bpe.task.forward(bpe.model, features.batch(np.arange(2)))
    assert outputs.written == ()
    assert outputs.scores.count > 0


def test_evaluation_while_training_has_beams_of_its_own(bpe: Bundle) -> None:
    task = Translate(TranslateOptions(max_length=40, beams=4, validation_beams=1))
    assert task.beams == 4
    task.fit(records())
    assert task.beams == 1


def test_a_small_model_learns_its_pairs(tmp_path: Path) -> None:
    from pretune.recipe.recipe import Recipe
    from pretune.training.run import train_recipe

    lines = ["\t".join(pair) for pair in [("de", "en"), *PAIRS]]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = str(tmp_path / "pairs.tsv")
    recipe = Recipe.load(
        "translate",
        {
            "data.train": data,
            "data.validation": data,
            "model.config": {**SIZES, "d_model": 64},
            "model.dropout": 0.0,
            "model.train_tokenizer.vocab_size": 300,
            "task.max_length": 40,
            "train.max_steps": 120,
            "train.warmup": 20,
            "train.learning_rate": 5e-3,
            "train.eval_every": 60,
            "output": str(tmp_path / "run"),
        },
    )
    result = train_recipe(recipe, quiet=True)
    assert result.metrics["bleu"] > 99
    bundle = load(tmp_path / "run")
    found = Predictor(bundle).predict(Predictor(bundle).records([PAIRS[0][0]]))
    assert found[0].translation == PAIRS[0][1]
    features = featurize(bundle.task, records(), bundle.tokenizer, evaluation=True)
    again = evaluate_features(bundle.task, bundle.model, features)
    assert again.metrics["cross_entropy"] == pytest.approx(
        result.metrics["cross_entropy"], rel=1e-4
    )
    folder = tmp_path / "run" / "best"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for source, target in PAIRS:  # by the file that says how
        written = theirs(folder).generate(**tokenizer(source, return_tensors="pt"))
        assert tokenizer.decode(written[0], skip_special_tokens=True) == target


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_models_are_saved_as_what_transformers_has_or_as_our_own(
    first: bool, shared: bool, tmp_path: Path
) -> None:
    more = {"normalize_before": first, "share_encoder_decoder_embeddings": shared}
    bundle = translator(**more)
    assert bundle.family.published is not first
    folder = saved(tmp_path / "model", bundle)
    again = load(folder)
    assert again.family.model_type == ("transformer" if first else "marian")
    features = featurize(bundle.task, records(), bundle.tokenizer)
    batch = features.batch(np.arange(len(PAIRS)))
    with torch.no_grad():
        mine = bundle.model(batch)
        torch.testing.assert_close(again.model.eval()(batch), mine)
    for name, value in more.items():
        assert getattr(again.backbone.config, name) == value
    if not first:
        source, target = (side.tokens.split(side.layout.lengths)[2] for side in batch.pairs)
        logits = theirs(folder)(source[None], decoder_input_ids=target[None]).logits[0]
        ours = mine.split(batch.pairs[1].layout.lengths)[2]
        torch.testing.assert_close(logits, ours, atol=1e-4, rtol=1e-4)


def test_a_published_model_is_a_translator(tmp_path: Path) -> None:
    config = transformers.MarianConfig(
        **SIZES, vocab_size=300, pad_token_id=299, decoder_start_token_id=299, eos_token_id=0
    )
    transformers.MarianMTModel(config).save_pretrained(tmp_path)
    train_tokenizer([text for pair in PAIRS for text in pair], "bpe", 300).save(tmp_path)
    bundle = load(tmp_path)
    assert bundle.task.name == "translate"
    assert bundle.task.options.max_length == 64
    assert bundle.report.unexpected == ()


def test_options_can_be_changed_and_are_checked(bpe: Bundle, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", bpe)
    assert load(folder, options={"beams": 2}).task.options.beams == 2
    with pytest.raises(RecipeError, match="no option 'beam'"):
        load(folder, options={"beam": 2})
    with pytest.raises(RecipeError, match="candidates"):
        load(folder, options={"candidates": 9})
    with pytest.raises(RecipeError, match="beams"):
        load(folder, options={"beams": "x"})


def test_a_tokenizer_without_an_end_is_refused() -> None:
    task = Translate(TranslateOptions())
    with pytest.raises(CheckpointError, match="end of a text"):
        load("transformer-small", task=task, tokenizer=train_tokenizer(["abc"], "char"))


def test_other_families_do_not_translate(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used for the task translate"):
        load(tiny_folder, task=Translate(TranslateOptions(max_length=20)))


def test_the_start_token_is_never_written(tmp_path: Path) -> None:
    """Published models have a row of zeros for it, and generation configs that forbid it."""
    bundle = translator("wordpiece")
    start = bundle.backbone.config.decoder_start_token_id
    with torch.no_grad():  # all logits but its own far below 0
        bundle.backbone.embeddings.tokens.weight[start] = 0.0
        bundle.model.bias -= 100.0
        bundle.model.bias[:, start] = 0.0
    folder = saved(tmp_path / "model", bundle)
    theirs = transformers.MarianMTModel.from_pretrained(folder).eval()
    assert theirs.generation_config.bad_words_ids == [[start]]
    for beams in (1, 3):
        found = Predictor(load(folder, options={"beams": beams})).predict(records())
        for (source, _), answer in zip(PAIRS, found, strict=True):
            ids = torch.tensor([bundle.tokenizer.encode([source])[0].ids])
            most = min(40, 2 * ids.numel() + 10)
            with torch.no_grad():
                written = theirs.generate(ids, num_beams=beams, max_new_tokens=most)
            expected = bundle.tokenizer.decode(written[0].tolist())
            assert answer.translation == expected.strip()


def test_names_of_special_tokens_in_texts_are_text(bpe: Bundle, wordpiece: Bundle) -> None:
    for bundle, name in ((bpe, "<|endoftext|>"), (wordpiece, "[SEP]")):
        given = records([(f"Ein {name} Hund", f"A {name} dog")])
        (feature,) = bundle.task.features(given, range(1), bundle.tokenizer, with_targets=True)
        end = bundle.tokenizer.end_id
        source, _ = feature.choices
        tokens = list(feature.tokens)
        assert [i for i, token in enumerate(tokens[:source]) if token == end] == [source - 1]
        target = list(feature.targets[NEXT])[source:]
        assert [i for i, token in enumerate(target) if token == end] == [len(target) - 1]


def test_transformers_can_pad_what_we_save(bpe: Bundle, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", bpe)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    sources = [source for source, _ in PAIRS]
    batch = theirs(sources, return_tensors="pt", padding=True)
    assert batch["attention_mask"].sum(1).tolist() == [
        len(encoded.ids) for encoded in bpe.tokenizer.encode(sources)
    ]


def test_a_tokenizer_of_targets_that_is_too_large_is_refused(tmp_path: Path) -> None:
    config = {"share_encoder_decoder_embeddings": False}
    bundle = translator(**config)
    bundle.tokenizer.target = train_tokenizer([chr(n) for n in range(200, 700)], "char")
    with pytest.raises(
        CheckpointError, match=r"tokenizer of the targets has \d+ tokens, the model"
    ):
        load(saved(tmp_path / "model", bundle))


def test_a_translator_does_not_go_on_from_a_prompt(bpe: Bundle) -> None:
    with pytest.raises(RunError, match="translates") as caught:
        TextGenerator.of(bpe)
    assert "pretune predict" in caught.value.hint


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_vocabulary_for_each_side(kind: str, tmp_path: Path) -> None:
    from pretune.recipe.recipe import Recipe
    from pretune.training.run import train_recipe

    sides = [("zh", "en")]
    sides += [("狗 跑 了" + " 了" * i, "The dog ran away" + " away" * i) for i in range(9)]
    (tmp_path / "pairs.tsv").write_text("\n".join(map("\t".join, sides)) + "\n", encoding="utf-8")
    recipe = Recipe.load(
        "translate",
        {
            "data.train": str(tmp_path / "pairs.tsv"),
            "data.validation": 0.3,
            "data.columns": {"source": "zh", "target": "en"},
            "model.config": SIZES,
            "model.train_tokenizer": {"kind": kind, "vocab_size": 300, "joint": False},
            "task.max_length": 40,
            "train.max_steps": 2,
            "output": str(tmp_path / "run"),
        },
    )
    train_recipe(recipe, quiet=True)
    bundle = load(tmp_path / "run")
    source, target = bundle.tokenizer, bundle.tokenizer.target
    config = bundle.backbone.config
    assert "狗" not in target.engine.get_vocab()
    assert config.decoder_vocab_size == target.vocab_size == bundle.model.vocab_size
    assert config.vocab_size == max(source.vocab_size, target.vocab_size)
    given = records([sides[1]])
    (feature,) = bundle.task.features(given, range(1), source, with_targets=True)
    first, _ = feature.choices
    assert feature.tokens[first - 1] == source.end_id
    assert feature.targets[NEXT][-1] == target.end_id
    assert target.decode(feature.targets[NEXT][first:]).lower() == sides[1][1].lower()
    # What transformers makes of the files: the source by its tokenizer, the target by ours.
    folder = tmp_path / "run" / "best"
    written = theirs(folder).generate(
        **transformers.AutoTokenizer.from_pretrained(folder)(sides[1][0], return_tensors="pt"),
        num_beams=1,
        max_new_tokens=2 * first + 10,
    )
    found = Predictor(load(folder, options={"beams": 1})).predict(given)
    assert whole(found[0].translation) == whole(target.decode(written[0].tolist()))
    with pytest.raises(CheckpointError, match="two vocabularies"):
        translator_of_one_table(source)
    for lost in ("manifest.json", "target_tokenizer.json"):
        (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=r"target_tokenizer\.json: missing"):
        load(folder)
    source.target = None
    source.save(tmp_path)
    assert load_tokenizer(tmp_path).target is None


def translator_of_one_table(tokenizer: Any) -> Bundle:
    config = {**SIZES, "share_encoder_decoder_embeddings": True}
    task = Translate(TranslateOptions(max_length=40))
    return load("transformer-small", task=task, tokenizer=tokenizer, config=config)


def test_what_a_loss_hangs_on_is_told_of_both_sides() -> None:
    bundle = translator(share_encoder_decoder_embeddings=False)
    features = featurize(bundle.task, records(), bundle.tokenizer, evaluation=True)
    batch = features.batch(np.array([1]))
    found = finished(integrated_gradients(bundle, batch, loss_of(bundle.task)))
    assert len(found.scores) == batch.num_tokens
    source = len(batch.pairs[0].tokens)
    parts = found.scores.split([source, len(found.scores) - source])
    assert all(part.abs().max() > 0 for part in parts)
    difference = found.value - found.baseline
    # Of a model that knows nothing yet the loss goes up and down on the way.
    gap = abs(float(found.scores.sum()) - difference)
    assert gap < 0.05 * float(found.scores.abs().sum())
