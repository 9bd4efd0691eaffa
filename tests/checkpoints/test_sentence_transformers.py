"""What is read of the files of sentence-transformers, and what is refused."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

import pretune
from pretune.bundle.bundle import load, save
from pretune.bundle.convert import convert
from pretune.checkpoints.sentence_transformers import embedding_settings, transformer_folder
from pretune.checkpoints.source import find_source, find_tokenizer
from pretune.errors import CheckpointError
from tests.checkpoints.sentence_folders import NEW, sentence_folder, write_json


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model of which nothing is read but that it is there."""
    write_json(tmp_path / "bare" / "config.json", {"model_type": "bert"})
    return tmp_path / "bare"


def test_minilm(minilm: Path) -> None:
    settings = embedding_settings(minilm)
    assert settings is not None
    assert (settings.pooling, settings.normalize, settings.max_length) == ("mean", True, 256)
    assert (settings.unsupported, settings.lowercase, settings.similarity) == (
        None,
        False,
        "cosine",
    )
    assert settings.prompts == {"query": "", "document": ""}


def test_a_folder_without_such_files(bare: Path) -> None:
    assert embedding_settings(bare) is None
    assert transformer_folder(bare) == bare


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "length"),
    [
        ({"max_seq_length": 128}, {"model_max_length": 512}, 128),
        # Newer versions write it with the tokenizer alone.
        ({}, {"model_max_length": 512}, 512),
        ({"max_seq_length": None}, {"model_max_length": 512.0}, 512),
        ({"max_seq_length": 8, "tokenizer_args": {"model_max_length": 16}}, {}, 16),
        ({}, {}, None),
        # transformers' way to say "no limit".
        ({}, {"model_max_length": 10**30}, None),
    ],
)
def test_the_length(
    bare: Path, tmp_path: Path, transformer: dict[str, Any], tokenizer: Any, length: int | None
) -> None:
    folder = sentence_folder(
        tmp_path / "model", bare, transformer=transformer, tokenizer=tokenizer, prefix=NEW
    )
    settings = embedding_settings(folder)
    assert settings is not None
    assert settings.max_length == length
    assert settings.unsupported is None


def test_how_a_model_is_computed_changes_no_vector(bare: Path, tmp_path: Path) -> None:
    entries = {"torch_dtype": "float32", "attn_implementation": "sdpa", "add_pooling_layer": False}
    folder = sentence_folder(tmp_path / "model", bare, transformer={"model_kwargs": entries})
    settings = embedding_settings(folder)
    assert settings is not None
    assert settings.unsupported is None


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"modules": ["Dense"]}, "modules.json: has a Dense"),
        ({"modules": ["WeightedLayerPooling"]}, "modules.json: has a WeightedLayerPooling"),
        ({"modules": ["custom.Attention"]}, "modules.json: has a custom.Attention"),
        (
            {"modules": ["Pooling"]},
            "is not a Transformer, then a Pooling, but Transformer, Pooling",
        ),
        ({"pooling": {"pooling_mode": "weightedmean"}}, "config.json: the pooling weightedmean"),
        (
            {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
            "several poolings at once: cls, mean",
        ),
        ({"transformer": {"query_length": 32}}, "sentence_bert_config.json: query_length is 32"),
        ({"transformer": {"transformer_task": "fill-mask"}}, 'transformer_task is "fill-mask"'),
        ({"transformer": {"config_args": {"n_layer": 1}}}, 'config_args is {"n_layer": 1}'),
        ({"transformer": {"model_args": {"dtype": "bfloat16"}}}, 'model_args is {"dtype": "bfl'),
        (
            {"transformer": {"model_kwargs": {"torch_dtype": "float16", "use_cache": False}}},
            'model_kwargs is {"torch_dtype": "float16"}',
        ),
        ({"transformer": {"model_kwargs": {"subfolder": "v2"}}}, "model_kwargs is"),
        ({"transformer": {"modality_config": {"message": {}}}}, "modality_config is"),
        ({"tokenizer": {"truncation_side": "left"}}, "truncation_side is left"),
        ({"general": {"model_type": "CrossEncoder"}}, "model_type is CrossEncoder"),
    ],
    ids=str,
)
def test_what_we_do_not_compute_is_named(
    bare: Path, tmp_path: Path, more: dict[str, Any], told: str
) -> None:
    settings = embedding_settings(sentence_folder(tmp_path / "model", bare, **more))
    assert settings is not None
    assert told in (settings.unsupported or "")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("modules.json", [], "not a list of modules"),
        ("modules.json", [{"type": "a", "path": "../other"}], "a path inside the folder"),
        ("modules.json", "{", "not valid JSON"),
        ("1_Pooling/config.json", None, "missing, but modules.json names it"),
        ("1_Pooling/config.json", {"pooling_mode": "meen"}, "pooling_mode must be one of cls, max"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode must be one of"),
        ("1_Pooling/config.json", {"include_prompt": 1}, "must be true or false, not an int"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "a whole number from 1 on, not 0"),
        ("sentence_bert_config.json", {"max_seq_length": True}, "a whole number from 1 on"),
        ("sentence_bert_config.json", {"max_seq_length": "9"}, "from 1 on, not '9'"),
        ("sentence_bert_config.json", {"do_lower_case": "no"}, "do_lower_case must be true or"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts.a must be a text"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "not q"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "one of cosine"),
    ],
    ids=str,
)
def test_mistakes_name_file_and_key(
    bare: Path, tmp_path: Path, name: str, content: Any, told: str
) -> None:
    folder = sentence_folder(tmp_path / "model", bare)
    if content is None:
        (folder / name).unlink()
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        embedding_settings(folder)
    assert caught.value.message.startswith(str(folder / name))
    assert told in caught.value.message
    # A classifier needs no such file.
    assert find_source(folder) == folder


class TestInAFolderOfItsOwn:
    @pytest.fixture
    def folder(self, tmp_path: Path, tiny_folder: Path) -> Path:
        place = sentence_folder(
            tmp_path / "model", tiny_folder, inside="0_Transformer", transformer={}
        )
        # What the first versions wrote, which is not the model's.
        write_json(place / "config.json", {"__version__": "0.2.5"})
        return place

    def test_the_model_is_there(self, folder: Path) -> None:
        assert find_source(folder) == folder / "0_Transformer"
        assert find_tokenizer(folder).special_id("cls_token") == 2
        settings = embedding_settings(folder / "0_Transformer")
        assert settings is not None
        assert settings.source == str(folder)

    def test_from_the_hub(self, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
        """Each call brings what its patterns ask for, as the Hub does."""
        (folder / "0_Transformer" / "pytorch_model.bin").write_bytes(b"")
        local = tmp_path / "local"

        def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            for path in filter(Path.is_file, folder.rglob("*")):
                name = path.relative_to(folder).as_posix()
                if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                    (local / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, local / name)
            return str(local)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        assert find_source("owner/name") == local / "0_Transformer"
        assert embedding_settings(local / "0_Transformer") is not None
        wanted = pretune.embed(folder, ["good film"], device="cpu")
        np.testing.assert_array_equal(pretune.embed("owner/name", ["good film"]), wanted)
        assert not (local / "0_Transformer" / "pytorch_model.bin").exists()


def test_a_copy_gives_the_same_vectors(tiny_folder: Path, tmp_path: Path) -> None:
    folder = sentence_folder(
        tmp_path / "model",
        tiny_folder,
        {"pooling_mode_cls_token": True},
        inside="0_Transformer",
        normalize=True,
        transformer={"max_seq_length": 8},
        general={"prompts": {"query": "good "}, "default_prompt_name": "query"},
    )
    texts = ["the good film", "a bad film " * 9]
    wanted = pretune.embed(folder, texts, device="cpu")
    convert(folder, tmp_path / "converted")
    (tmp_path / "saved").mkdir()
    save(load(folder), tmp_path / "saved")
    for name in ("converted", "saved"):
        assert not (tmp_path / name / "0_Transformer").exists()
        found = pretune.embed(tmp_path / name, texts, device="cpu")
        np.testing.assert_array_equal(found, wanted)
