from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pretune.data.batch import PackedBatch
from tests.parity.families import (
    CASES,
    PAIRS,
    SIZES,
    compare,
    difference,
    our_logits,
    ours_of,
    published,
    their_logits,
)

#: Families that share their layers with others: in the short run one head, in the long one all.
ALIKE = {
    "roberta": "sequence_classification",
    "xlm-roberta": "question_answering",
    "camembert": "masked_lm",
    "albert": "pretraining",
    "ernie": "multiple_choice",
    "deberta-v2": "sequence_classification",
    "modernbert": "masked_lm",
    "eurobert": "masked_lm",
}


@pytest.mark.parametrize(
    ("family", "head"),
    [
        pytest.param(
            *(family, head),
            marks=[pytest.mark.slow] if family in ALIKE and head != ALIKE[family] else [],
        )
        for family, head in CASES
    ],
)
def test_both_ways_within_1e_5(family: str, head: str) -> None:
    found = compare(family, head)
    assert found.reading < 1e-5
    assert found.writing < 1e-5


@pytest.mark.parametrize(
    ("family", "own", "other"),
    [
        ("distilbert", "n_heads", "num_attention_heads"),
        ("gpt2", "n_head", "num_attention_heads"),
        ("t5", "num_heads", "num_attention_heads"),
        ("marian", "encoder_attention_heads", "num_attention_heads"),
    ],
)
def test_entries_have_the_other_names_that_transformers_reads(
    family: str, own: str, other: str, tmp_path: Path
) -> None:
    theirs = published(family, "backbone")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    entries = json.loads(path.read_text())
    heads = entries[own]
    # No shape of a tensor tells a wrong number of heads.
    for more in ({}, {own: 1}):
        path.write_text(json.dumps({**without(entries, own), **more, other: heads}))
        again = type(theirs).config_class.from_pretrained(tmp_path)
        assert getattr(again, own) == heads
        ours = ours_of(tmp_path, family, "backbone")
        ids = [[5, 9, 11, 7]]
        with torch.no_grad():
            assert (
                difference(our_logits(ours, "backbone", ids), their_logits(theirs, "backbone", ids))
                < 1e-5
            )


def without(entries: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key != name}


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@torch.no_grad()
def test_decoders_answer_about_the_token_before_padding(family: str, tmp_path: Path) -> None:
    """Where one token ends and pads texts, transformers does not read the end of a text."""
    theirs = published(family, "sequence_classification", pad_token_id=5)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(tmp_path, family, "sequence_classification")
    ids = [[7, 9, 5], [8, 5, 11, 5, 5], [5], [3, 4]]
    found = our_logits(ours, "sequence_classification", ids)
    assert difference(found, their_logits(theirs, "sequence_classification", ids)) < 1e-5


#: Families that read single texts; XLM-R and CamemBERT are computed by RoBERTa's code.
SINGLE = [f for f in SIZES if f not in (*PAIRS, "xlm-roberta", "camembert")]


@pytest.mark.parametrize("family", SINGLE)
def test_hidden_states_and_attention_maps(family: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = published(family, "backbone")
    theirs.save_pretrained(tmp_path)
    ours = ours_of(tmp_path, family, "backbone")
    ids = [torch.randint(1, 53, (n,)).tolist() for n in (9, 4)]
    with torch.no_grad():
        found = ours(PackedBatch.of(ids), output_hidden_states=True, output_attentions=True)
        for i, one in enumerate(ids):
            expected = theirs(
                torch.tensor([one]), output_hidden_states=True, output_attentions=True
            )
            mine = [h.split([9, 4])[i] for h in found.hidden_states]
            assert difference(mine, [h[0] for h in expected.hidden_states]) < 1e-5
            maps = [layer[i] for layer in found.attentions]
            assert difference(maps, [a[0] for a in expected.attentions]) < 1e-5


@pytest.mark.parametrize("family", SINGLE)
@pytest.mark.parametrize("which", ["first", "last"])
def test_selected_rows_are_those_of_all(family: str, which: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    published(family, "backbone").save_pretrained(tmp_path)
    ours = ours_of(tmp_path, family, "backbone")
    batch = PackedBatch.of([torch.randint(1, 53, (n,)).tolist() for n in (9, 1, 4)])
    select = getattr(batch, which)
    with torch.no_grad():
        part = ours(batch, select=select).last_hidden_state
        whole = ours(batch).last_hidden_state[select.rows]
    assert (part - whole).abs().max() < 1e-6


@pytest.mark.parametrize("family", [*SINGLE, *PAIRS])
def test_gradients_within_1e_4(family: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    usual = {
        "gpt2": "causal_lm",
        **dict.fromkeys(("marian", "t5", "mt5"), "translation"),
        **dict.fromkeys(("gemma3_text", "llama", "mistral", "qwen2", "qwen3"), "causal_lm"),
    }
    head = usual.get(family, "masked_lm")
    theirs = published(family, head)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(tmp_path, family, head)
    ids = torch.randint(1, 53, (11,)).tolist()
    for logits in (our_logits(ours, head, [ids]), their_logits(theirs, head, [ids])):
        logits[0].pow(2).mean().backward()
    mine = ours.backbone.embeddings.tokens.weight.grad
    expected = theirs.get_input_embeddings().weight.grad
    # To a padding token transformers gives no gradient; nothing is padded here.
    wanted = torch.arange(53) != SIZES[family].get("pad_token_id", 0)
    assert (mine - expected)[wanted].abs().max() < 1e-4
    assert expected.abs().max() > 1e-3


def test_published_sizes() -> None:
    """Counts of the papers' models, from their configurations alone."""
    from pretune.models.bert import BertConfig, BertModel
    from pretune.models.distilbert import DistilBertConfig, DistilBertModel
    from pretune.models.gpt2 import Gpt2Config, Gpt2Model

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        bert, distil = BertModel(BertConfig()), DistilBertModel(DistilBertConfig())
        gpt2 = Gpt2Model(Gpt2Config())
        theirs = transformers.GPT2Model(transformers.GPT2Config())
    assert count(bert.embeddings) == 23_837_184
    assert count(bert.layers) == 85_054_464
    assert count(bert.pooler) == 590_592
    assert count(distil) == 66_362_880
    assert count(gpt2) == count(theirs) == 124_439_808
