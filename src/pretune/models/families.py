"""The model families by name, each imported when it is first asked for."""

from __future__ import annotations

import copyreg
from typing import Any

from torch import nn

from pretune.models.backbone import Backbone
from pretune.models.family import Family
from pretune.registry import Registry

#: Families by the `model_type` of `config.json`. A package adds its own as an entry point in the
#: group `pretune.families`.
FAMILIES: Registry[Family] = Registry(
    "pretune.families",
    "model family",
    {
        "bert": "pretune.models.bert:FAMILY",
        "bert-sinusoidal": "pretune.models.bert:SINUSOIDAL",
        "distilbert": "pretune.models.distilbert:FAMILY",
        "electra": "pretune.models.electra:FAMILY",
        "eurobert": "pretune.models.eurobert:FAMILY",
        "roberta": "pretune.models.roberta:FAMILY",
        "xlm-roberta": "pretune.models.roberta:XLM_ROBERTA",
        "camembert": "pretune.models.roberta:CAMEMBERT",
        "albert": "pretune.models.albert:FAMILY",
        "ernie": "pretune.models.ernie:FAMILY",
        "deberta-v2": "pretune.models.deberta:FAMILY",
        "gemma3_text": "pretune.models.gemma:FAMILY",
        "gpt2": "pretune.models.gpt2:FAMILY",
        "llama": "pretune.models.llama:FAMILY",
        "mistral": "pretune.models.llama:MISTRAL",
        "qwen2": "pretune.models.llama:QWEN2",
        "qwen3": "pretune.models.llama:QWEN3",
        "marian": "pretune.models.transformer:FAMILY",
        "modernbert": "pretune.models.modernbert:FAMILY",
        "mt5": "pretune.models.t5:MT5",
        "t5": "pretune.models.t5:FAMILY",
        "transformer": "pretune.models.transformer:PRE_NORM",
        "nnlm": "pretune.models.classics.nnlm:FAMILY",
        "rnn": "pretune.models.classics.rnn:FAMILY",
    },
)


def _registered(model_type: str) -> Family:
    return FAMILIES[model_type]


def _pickled(family: Family) -> Any:
    """Pickle a family by its name: it holds functions of its file, which have none."""
    kind = family.model_type
    if kind in FAMILIES and FAMILIES[kind] is family:
        return _registered, (kind,)
    return family.__reduce_ex__(2)


# A model is pickled with its family, e.g. for the processes of joblib.
copyreg.pickle(Family, _pickled)

#: First words of preset names that are not the name of their family.
_PRESET_FAMILIES = {
    "deberta": "deberta-v2",
    "transformer": "marian",
    "mmbert": "modernbert",
    "gru": "rnn",
    "lstm": "rnn",
    "gemma": "gemma3_text",
    "smollm2": "llama",
    "tinyllama": "llama",
    "qwen2.5": "qwen2",
}


def build_head(backbone: Backbone, head: str, labels: int = 2, **options: Any) -> nn.Module:
    """Put a head of the backbone's family on a backbone.

    Args:
        backbone: any family's model without a head.
        head: the name of the head, e.g. `sequence_classification`.
        labels: outputs of a classification head.
        options: further options of that head, such as `dropout`.

    Raises:
        ValueError: the family has no such head.
    """
    kind = backbone.config.model_type
    family = FAMILIES[kind]
    if family.variant is not None:
        family = family.variant(backbone.config.to_dict())
    layout = family.heads.get(head)
    if layout is None or layout.build is None:
        raise ValueError(f"a {kind} has no head for {head.replace('_', ' ')}")
    return layout.build(backbone, labels, **options)


def preset(name: str) -> dict[str, Any] | None:
    """The contents of `config.json` for a published size, e.g. `bert-base`; None: no such size.

    A preset's name begins with its family's name, so that only that family is imported.
    """
    # A path or a Hub id: the packages that are installed need not be searched for families.
    if "/" in name:
        return None
    named = _PRESET_FAMILIES.get(name.partition("-")[0], "")
    for kind in FAMILIES:
        if kind == named or (not named and f"{name}-".startswith(f"{kind}-")):
            entries = FAMILIES[kind].presets.get(name)
            if entries is not None:
                return {"model_type": kind, **entries}
    return None


def preset_names() -> list[str]:
    """The names of all published sizes; imports every family."""
    return list(dict.fromkeys(name for family in FAMILIES.values() for name in family.presets))
