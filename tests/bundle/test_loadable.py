from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers.processors import TemplateProcessing

from pretune.bundle.bundle import load
from pretune.errors import CheckpointError
from pretune.inference.predict import Predictor
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.masked_lm.mask_lm import MaskLm, MaskLmOptions
from pretune.tasks.multiple_choice.choose import Choose, ChooseOptions
from pretune.tasks.question_answering.answer import Answerer, AnswerOptions
from pretune.tokenizers.load import load_tokenizer


def published(
    folder: Path, tiny_folder: Path, kind: str = "BertForSequenceClassification", **entries: Any
) -> Path:
    """A tiny model as transformers saves it."""
    config = transformers.BertConfig.from_pretrained(tiny_folder, **entries)
    getattr(transformers, kind)(config).save_pretrained(folder)
    shutil.copy(tiny_folder / "vocab.txt", folder)
    return folder


class TestSegments:
    @pytest.mark.parametrize(
        "task",
        [
            Answerer(AnswerOptions.of_length(32)),
            Choose(ChooseOptions(max_length=32)),
            Classify(ClassifyOptions(max_length=32, pair=True), ["a", "b"]),
            MaskLm(MaskLmOptions(max_length=32, next="nsp")),
        ],
        ids=lambda task: task.name,
    )
    def test_pairs_need_two(self, task: Any, tiny_folder: Path, tmp_path: Path) -> None:
        folder = published(tmp_path / "one", tiny_folder, "BertModel", type_vocab_size=1)
        with pytest.raises(CheckpointError, match=r"2 segments.* has 1 \(type_vocab_size\)"):
            load(folder, task=task)
        published(tmp_path / "two", tiny_folder, "BertModel")
        assert load(tmp_path / "two", task=task).task is task

    def test_single_texts_need_one(self, tiny_folder: Path, tmp_path: Path) -> None:
        found = load(published(tmp_path / "one", tiny_folder, type_vocab_size=1))
        predictor = Predictor(found, device="cpu")
        assert len(predictor.predict(predictor.records(["good film"]))) == 1

    def test_a_published_model_for_questions(self, tiny_folder: Path, tmp_path: Path) -> None:
        folder = published(
            tmp_path / "a", tiny_folder, "BertForQuestionAnswering", type_vocab_size=1
        )
        with pytest.raises(CheckpointError, match="the task answer reads two texts at a time"):
            load(folder)
        assert load(folder, bare=True).task is None

    def test_a_tokenizer_that_gives_both_texts_the_first(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        folder = published(tmp_path / "one", tiny_folder, type_vocab_size=1)
        tokenizer = load_tokenizer(folder)
        tokenizer.engine.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[
                (name, tokenizer.engine.token_to_id(name)) for name in ("[CLS]", "[SEP]")
            ],
        )
        tokenizer.save(folder)
        task = Classify(ClassifyOptions(max_length=32, pair=True), ["a", "b"])
        predictor = Predictor(load(folder, task=task), device="cpu")
        assert len(predictor.predict(predictor.records([("good film", "bad film")]))) == 1
        with pytest.raises(CheckpointError, match="mask_lm reads two"):
            load(folder, task=MaskLm(MaskLmOptions(max_length=32, next="nsp")))

    @pytest.mark.parametrize("bare", [True, False])
    @pytest.mark.parametrize("template", ["[CLS] $A:7 [SEP]", "[CLS]:7 $A [SEP]"])
    def test_a_template_with_others_than_the_model_has(
        self, template: str, bare: bool, tiny_folder: Path, tmp_path: Path
    ) -> None:
        folder = published(tmp_path / "a", tiny_folder)
        tokenizer = load_tokenizer(folder)
        tokenizer.engine.post_processor = TemplateProcessing(
            single=template,
            special_tokens=[
                (name, tokenizer.engine.token_to_id(name)) for name in ("[CLS]", "[SEP]")
            ],
        )
        tokenizer.save(folder)
        with pytest.raises(CheckpointError, match=r"up to 7, the model has 2 \(type_vocab_size\)"):
            load(folder, bare=bare)

    def test_models_without_segments_have_no_limit(self, tiny_folder: Path, tmp_path: Path) -> None:
        size = len((tiny_folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
        config = transformers.DistilBertConfig(
            vocab_size=size,
            dim=32,
            n_layers=1,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=64,
        )
        transformers.DistilBertModel(config).save_pretrained(tmp_path / "d")
        shutil.copy(tiny_folder / "vocab.txt", tmp_path / "d")
        assert load(tmp_path / "d", task=Answerer(AnswerOptions.of_length(32))).task is not None


@pytest.mark.parametrize("name", ["BertLMHeadModel", "GPT2LMHeadModel"])
def test_a_head_that_the_family_has_not_is_the_reason(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = published(tmp_path / "a", tiny_folder, "BertLMHeadModel")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": [name]}), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match="bert model cannot be used for the task causal_lm"):
        load(folder)
