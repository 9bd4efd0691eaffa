"""`Family`: everything that is particular to one published model family, in one place.

Each family's file ends with its `Family`: the backbone, its heads with the functions that build
them, the published parameter names, and the published sizes. `families.py` lists them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pretune.models.backbone import Backbone
from pretune.models.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """Maps one of our parameter names to the published one.

    `{i}` stands for the number of a layer. A name without `.weight` or `.bias` covers both. Several
    published tensors may be concatenated along the first dimension into one of ours: query, key and
    value share one matrix here.

    Attributes:
        ours: our name.
        theirs: the published names, in the order of concatenation.
        transposed: whether published matrices are stored as `[in, out]` (GPT-2's Conv1D).
        stack: the stack the layer belongs to, in models with an encoder (0) and a decoder (1). Our
            layers are numbered through both stacks; published numbers restart at 0.
    """

    ours: str
    theirs: tuple[str, ...]
    transposed: bool = False
    stack: int = 0


def rules(
    *pairs: tuple[str, str | tuple[str, ...]], transposed: bool = False, stack: int = 0
) -> tuple[Rule, ...]:
    """Build rules from pairs of our name and the published name or names."""
    return tuple(
        Rule(ours, (theirs,) if isinstance(theirs, str) else theirs, transposed, stack)
        for ours, theirs in pairs
    )


@dataclass(frozen=True)
class HeadLayout:
    """A head of a family: how to build it, and how it is stored.

    Attributes:
        architecture: the class that transformers has for a model with this head. Where two heads of
            a family share a class, `config.json` alone means the later one.
        build: `(backbone, labels, **options)` to the model; None for the bare backbone. The options
            come from the task, e.g. `dropout`.
        rules: names of the parameters that the head adds.
        tied: published names of tensors that are stored twice, and our name (in the backbone or in
            the head) of the one tensor they stand for.
        pooled: our name of the part of the head that reads the backbone's pooler.
        keeps_output: whether the output layer of the file counts also where the parameters that
            the head adds are new.
        output: our name of an output layer over the vocabulary that is a matrix of its own. It is a
            part of what the model has learned, whatever the task: any file that has it gives it.
        prefix: of the backbone's parameter names in a model with this head, where it is not that of
            the family.
    """

    architecture: str
    build: Callable[..., nn.Module] | None = None
    rules: tuple[Rule, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    pooled: str = ""
    keeps_output: bool = False
    output: str | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class Family:
    """A published model family.

    Attributes:
        model_type: its name in `config.json`.
        prefix: the prefix of the backbone's parameter names in a model with a head.
        backbone: our class; its `config_class` reads `config.json`.
        rules: names of the backbone's parameters.
        heads: heads by name; "backbone" is the model without one.
        ignored: names in published files that carry nothing to load; `{i}` as in rules.
        other_heads: first parts of the names of published heads that are not in `heads`.
        optional: our names that a file may lack; they are then initialised and reported.
        published: whether transformers has this family.
        presets: entries of `config.json` for each published size, by the size's name. A name begins
            with the `model_type`.
        tokenizer: the source of a tokenizer that fits random weights of this family.
        variant: picks another layout of the same family by the entries of a `config.json`.
        settled: corrects the entries of a `config.json` by its file; given a function that says
            whether the file has two tensors, by their names, with different values.
    """

    model_type: str
    prefix: str
    backbone: type[Backbone]
    rules: tuple[Rule, ...]
    heads: Mapping[str, HeadLayout]
    ignored: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    published: bool = True
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokenizer: str | None = None
    variant: Callable[[Mapping[str, Any]], Family] | None = None
    settled: Callable[[Mapping[str, Any], Callable[[str, str], bool]], dict[str, Any]] | None = None

    @property
    def usual_head(self) -> str:
        """The head to assume where nothing says which: a sequence classifier if there is one."""
        heads = [name for name in self.heads if name != "backbone"]
        return "sequence_classification" if "sequence_classification" in heads else heads[0]

    def build(
        self, config: ModelConfig, head: str = "backbone", labels: int = 2, **options: Any
    ) -> nn.Module:
        """Build a model with fresh weights.

        Args:
            config: the sizes, of the family's `config_class`.
            head: a name in `heads`.
            labels: outputs of a classification head.
            options: further options of the head, such as `dropout`.
        """
        backbone = self.backbone(config)  # type: ignore[call-arg]
        build = self.heads[head].build
        return backbone if build is None else build(backbone, labels, **options)
