from __future__ import annotations

from pathlib import Path

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


@pytest.mark.parametrize(("family", "head"), CASES)
def test_both_ways_within_1e_5(family: str, head: str) -> None:
    found = compare(family, head)
    assert found.reading < 1e-5
    assert found.writing < 1e-5


#: Families that read single texts.
SINGLE = [family for family in SIZES if family not in PAIRS]


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


@pytest.mark.parametrize("family", SIZES)
def test_gradients_within_1e_4(family: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    usual = {
        "gpt2": "causal_lm",
        "marian": "translation",
        "electra": "token_classification",
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
    assert (mine - expected).abs().max() < 1e-4
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
