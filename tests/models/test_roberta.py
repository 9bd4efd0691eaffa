"""RoBERTa and its kin: positions that count from the padding token, and pairs without segments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.bundle.bundle import load
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.inference.predict import Predictor
from pretune.models.families import FAMILIES, build_head
from pretune.models.pruned import keep_tokens
from pretune.models.roberta import RobertaConfig, RobertaModel
from tests.models.encoders import saved

PAIRS = [("the good film", "a bad <pad> one"), ("", "film")]
SMALL = RobertaConfig(
    vocab_size=12,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=12,
    pad_token_id=3,
)


def test_positions_count_from_the_padding_token_and_pass_over_it() -> None:
    batch = PackedBatch.of([[5, 6], [3, 7, 3, 8], [9], [1, 3]])
    found = batch.positions_after(3)
    assert found.tolist() == [4, 5, *(3, 4, 3, 5), 4, *(4, 3)]
    # Without any padding token nothing has to be counted.
    plain = PackedBatch.of([[5, 6], [7]])
    assert plain.positions_after(3).tolist() == [4, 5, 4]


def test_a_text_has_fewer_tokens_than_the_table_has_rows(tmp_path: Path) -> None:
    assert SMALL.size("max_position_embeddings") == 8
    saved(tmp_path, "RobertaForSequenceClassification", type_vocab_size=1)
    task = load(tmp_path).task
    assert task is not None
    assert task.options.max_length == 64
    longer = task.options.model_copy(update={"max_length": 65})
    with pytest.raises(CheckpointError, match="64 positions, fewer than"):
        load(tmp_path, task=type(task)(longer, task.labels))


@pytest.mark.parametrize(
    "entries",
    [
        {"max_position_embeddings": 2},
        {"pad_token_id": -1},
        {"is_decoder": True},
        {"position_embedding_type": "relative_key"},
        {"classifier_dropout": 2},
    ],
)
def test_entries_that_make_no_sense(entries: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(entries))):
        RobertaConfig.from_dict(entries)


def test_pairs_are_framed_and_answered_as_transformers_does(tmp_path: Path) -> None:
    model, tokenizer = saved(tmp_path, "RobertaForSequenceClassification", type_vocab_size=1)
    ours = load(tmp_path)
    encoded = ours.tokenizer.encode(*zip(*PAIRS, strict=True))
    ids = [e.ids for e in encoded]
    assert ids == tokenizer(*map(list, zip(*PAIRS, strict=True)))["input_ids"]
    assert tokenizer.decode(ids[1]) == "<s></s></s>film</s>"
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([own])).logits for own in ids])
        found = ours.model(PackedBatch.of(ids, [e.segments for e in encoded]))
    assert (found - expected).abs().max() < 1e-5


def test_a_gap_may_have_either_name(tmp_path: Path) -> None:
    saved(tmp_path, "RobertaForMaskedLM", type_vocab_size=1)
    predictor = Predictor(load(tmp_path))
    texts = [f"the {gap} film" for gap in ("[MASK]", "<mask>")]
    one, two = predictor.predict(predictor.records(texts, "texts"))
    assert one == two
    assert len(one.gaps) == 1


def test_what_fits_a_gap_is_shown_as_the_pipeline_of_transformers_shows_it(tmp_path: Path) -> None:
    from transformers import pipeline

    saved(tmp_path, "RobertaForMaskedLM", type_vocab_size=1)
    predictor = Predictor(load(tmp_path))
    (answer,) = predictor.predict(predictor.records(["the<mask>film"], "texts"))
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu", dtype=torch.float32)
    theirs = [own["token_str"] for own in fill("the<mask>film", top_k=5)]
    assert [candidate.token for candidate in answer.gaps[0]] == theirs
    # Of the whole vocabulary, too: a space is none of its letters for one.
    tokenizer = predictor.bundle.tokenizer
    words = [tokenizer.text_of(number) for number in range(tokenizer.vocab_size)]
    assert any(" " in word for word in words)
    assert not any("\u0120" in word for word in words)


def test_a_padding_token_with_another_number_keeps_the_positions() -> None:
    torch.manual_seed(0)
    model = build_head(RobertaModel(SMALL), "masked_lm").eval()
    texts, kept = [[5, 3, 7, 9], [8]], [1, 3, 5, 7, 8, 9]
    with torch.no_grad():
        before = model(PackedBatch.of(texts))
        keep_tokens(model, kept)
        after = model(PackedBatch.of([[kept.index(token) for token in text] for text in texts]))
    assert model.backbone.config.pad_token_id == 1
    assert model.backbone.config.size("max_position_embeddings") == 8
    torch.testing.assert_close(after, before[:, kept])


def test_random_weights_take_the_padding_token_of_their_tokenizer(minilm_folder: Path) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    bundle = load("roberta-base", tokenizer=minilm_folder, config={**sizes, "num_hidden_layers": 1})
    assert bundle.backbone.config.pad_token_id == 0
    assert bundle.backbone.config.size("max_position_embeddings") == 513
    tokenizer = bundle.tokenizer
    tokenizer.special.pop("pad_token")
    with pytest.raises(CheckpointError, match="no padding token"):
        load("roberta-base", tokenizer=tokenizer, config={**sizes, "num_hidden_layers": 1})


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_published_sizes(kind: str) -> None:
    family = FAMILIES[kind]
    with torch.device("meta"):
        model = family.build(family.backbone.config_class.from_dict(family.presets[f"{kind}-base"]))
    counts = {"roberta": 124_645_632, "xlm-roberta": 278_043_648, "camembert": 110_621_952}
    assert sum(p.numel() for p in model.parameters()) == counts[kind]


def test_words_of_a_tagger_are_cut_as_within_a_text(tmp_path: Path) -> None:
    _, tokenizer = saved(tmp_path, "RobertaForTokenClassification", type_vocab_size=1)
    ours = load(tmp_path).tokenizer
    (words,) = ours.encode_words([["the", "good", "film"]])
    assert tokenizer.decode(words.ids) == " the good film"
    (text,) = tokenizer([" the good film"], add_special_tokens=False)["input_ids"]
    assert words.ids == text
    assert ours.settings["add_prefix_space"] is True
