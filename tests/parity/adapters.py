"""LoRA of every family with every head: our adapters in peft, and peft's here."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn

from pretune.checkpoints.peft import PublishedAdapter, put_beside, save_adapter
from pretune.models.backbone import backbone_of
from pretune.models.families import FAMILIES
from pretune.models.lora import CROSS_TARGETS, TARGETS, add_lora
from tests.parity.families import (
    CASES,
    LENGTHS,
    Parity,
    difference,
    our_logits,
    ours_of,
    published,
    their_logits,
)

#: Of the backbone alone there is nothing to train.
ADAPTED = [(family, head) for family, head in CASES if head not in ("backbone", "pretraining")]
RANK, ALPHA = 2, 6.0


def base_of(family: str, head: str, folder: Path) -> nn.Module:
    """Write transformers' model with random weights into a folder, and return it."""
    theirs = published(family, head)
    theirs.save_pretrained(folder)
    return theirs


def drawn(model: nn.Module) -> nn.Module:
    """Draw everything anew that is trained."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def targets_of(model: nn.Module) -> list[str]:
    """Every target that the layers of a model have."""
    crossed = getattr(backbone_of(model).layers[-1], "cross", None) is not None
    return [*TARGETS, *(CROSS_TARGETS if crossed else ())]


def reopened(family: str, head: str, folder: Path) -> Any:
    """Transformers' model of a folder."""
    kind = getattr(transformers, FAMILIES[family].heads[head].architecture)
    return kind.from_pretrained(folder, attn_implementation="eager").eval()


@torch.no_grad()
def compare(family: str, head: str, seed: int = 0) -> Parity:
    """Open our adapter with peft, and what peft writes then beside our model."""
    torch.manual_seed(seed)
    ids = [torch.randint(1, 53, (length,)).tolist() for length in LENGTHS]
    known = FAMILIES[family]
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        base_of(family, head, folder / "base")
        ours = ours_of(folder / "base", family, head)
        before = our_logits(ours, head, ids)
        add_lora(ours, RANK, ALPHA, targets_of(ours))
        assert difference(our_logits(ours, head, ids), before) == 0
        mine = our_logits(drawn(ours), head, ids)
        assert difference(mine, before) > 1e-3
        save_adapter(ours, folder / "a", known, head, str(folder / "base"))
        theirs = peft.PeftModel.from_pretrained(
            reopened(family, head, folder / "base"), folder / "a"
        )
        opened = difference(their_logits(theirs.eval(), head, ids), mine)
        theirs.save_pretrained(folder / "b")
        again = ours_of(folder / "base", family, head)
        put_beside(again, PublishedAdapter.read(folder / "b"), known, head)
        for part in again.modules():
            part.apart = True  # type: ignore[assignment]
        reading = difference(our_logits(again, head, ids), mine)
    return Parity(family, head, reading, opened)


def main() -> None:
    """Print the table."""
    print("| family | head | peft's adapter here | ours in peft |")
    print("|---|---|---:|---:|")
    for family, head in ADAPTED:
        pair = compare(family, head)
        name = FAMILIES[family].heads[head].architecture
        print(f"| {family} | {name} | {pair.reading:.1e} | {pair.writing:.1e} |")


if __name__ == "__main__":
    main()
