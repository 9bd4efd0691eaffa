"""Smaller models: layers, attention heads, hidden neurons and tokens that are removed, in place.

What is removed is gone from memory and from the products. `config.json` has an entry for the number
of layers, of neurons (the same in all layers) and of tokens, so that any reader opens such a file.
It has none for the width of a layer's attention, which is the hidden size everywhere. A file
therefore has the matrices at their full size, with zeros for the heads that were removed: any
reader computes the same. An entry of ours names the heads, which are removed again when pretune
loads the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pretune.errors import CheckpointError, with_article
from pretune.models.backbone import Backbone, backbone_of
from pretune.models.config import REMOVED_HEADS
from pretune.models.heads.language import LanguageModelHead
from pretune.models.heads.replaced import companion_of, share_embeddings, shares_embeddings
from pretune.models.layers import (
    FeedForward,
    GatedFeedForward,
    Linear,
    SelfAttention,
    TransformerLayer,
)


def transformer_layers(backbone: Backbone) -> list[TransformerLayer]:
    """The layers of a Transformer with one stack.

    Raises:
        CheckpointError: the model is no Transformer, or has an encoder and a decoder.
    """
    layers = [layer for layer in backbone.layers if isinstance(layer, TransformerLayer)]
    if len(layers) != len(backbone.layers) or len(backbone.stacks) != 1 or not layers:
        raise CheckpointError(
            f"{with_article(backbone.config.model_type)} model cannot be pruned",
            "Transformers of one stack of layers can: bert, modernbert, gpt2, llama and others.",
        )
    return layers


def own_layers(backbone: Backbone) -> list[TransformerLayer]:
    """The layers of a Transformer with one stack, each with weights of its own.

    Raises:
        CheckpointError: the model is another, or its layers are one that is used several times.
    """
    layers = transformer_layers(backbone)
    if len({*map(id, layers)}) < len(layers):
        raise CheckpointError(
            f"{with_article(backbone.config.model_type)} model cannot lose heads or neurons: "
            "all of its layers are one",
            "Remove layers or tokens: --layers, --vocab.",
        )
    return layers


def block_of(layer: TransformerLayer) -> FeedForward | GatedFeedForward:
    """The feed-forward block of a layer.

    Raises:
        CheckpointError: it is of another kind.
    """
    block = layer.feed_forward
    if not isinstance(block, FeedForward | GatedFeedForward):
        raise CheckpointError(
            "the feed-forward blocks of this model cannot be pruned",
            "Remove layers or tokens: --layers, --vocab.",
        )
    return block


def keep_layers(backbone: Backbone, kept: Sequence[int]) -> None:
    """Remove all layers but these, which are counted from 0."""
    layers = transformer_layers(backbone)
    removed = backbone.config.removed_heads
    heads = {str(new): removed[old] for new, old in enumerate(kept) if old in removed}
    backbone.config = backbone.config.with_layers(kept, **{REMOVED_HEADS: heads or None})
    backbone.layers = nn.ModuleList(layers[i] for i in kept)


@torch.no_grad()
def keep_neurons(backbone: Backbone, kept: Sequence[Tensor]) -> None:
    """Remove neurons between the two maps of each feed-forward block.

    Args:
        backbone: a Transformer.
        kept: for each layer the numbers of the neurons that stay, as many in each layer.
    """
    for layer, neurons in zip(own_layers(backbone), kept, strict=True):
        block = block_of(layer)
        if isinstance(block, GatedFeedForward):
            # Gates first, then what passes them.
            both = torch.cat([neurons, neurons + block.down.in_features])
            _keep_outputs(block.gate_up, both)
        else:
            _keep_outputs(block.up, neurons)
        _keep_inputs(block.down, neurons)
    backbone.config = backbone.config.resized(intermediate_size=len(kept[0]))


@torch.no_grad()
def remove_heads(
    backbone: Backbone, removed: Mapping[int, Sequence[int]], *, zeros: bool = False
) -> None:
    """Remove attention heads.

    Args:
        backbone: a Transformer, whose `config` does not change: see `prune_heads`.
        removed: layer -> numbers of heads among those that the layer has, both from 0.
        zeros: check that the weights of these heads are zeros, as a file has them.

    Raises:
        CheckpointError: `zeros`, and a weight is not 0; or heads depend on others.
    """
    layers = own_layers(backbone) if removed else []
    for number, heads in removed.items():
        attention = layers[number].attention
        # A bias of the scores is a class of its own.
        if attention.sharing > 1 or type(attention) is not SelfAttention:
            raise CheckpointError(
                f"attention heads of {with_article(backbone.config.model_type)} model cannot be "
                "removed: they share keys and values, or a bias of the scores",
                "Remove layers, neurons or tokens: --layers, --ffn, --vocab.",
            )
        size = attention.width // attention.num_heads
        left = [head for head in range(attention.num_heads) if head not in {*heads}]
        kept, gone = _places(left, size), _places(sorted(heads), size)
        if zeros:
            parts = [attention.output.weight[:, gone]]
            for own in (attention.qkv.weight, attention.qkv.bias):
                parts += [] if own is None else [part[gone] for part in own.chunk(3)]
            if any(part.any() for part in parts):
                raise CheckpointError(
                    f"config: {REMOVED_HEADS} says that layer {number} lost the heads "
                    f"{', '.join(map(str, heads))}, but their weights are not 0"
                )
        rows = torch.cat([kept + i * attention.width for i in range(3)])
        _keep_outputs(attention.qkv, rows)
        _keep_inputs(attention.output, kept)
        attention.num_heads, attention.width = len(left), len(kept)


def prune_heads(backbone: Backbone, removed: Mapping[int, Sequence[int]]) -> None:
    """Remove attention heads from a model, and note them in its configuration.

    The arguments are as for `remove_heads`. In the configuration heads have the numbers that they
    had before any was removed.
    """
    before = backbone.config.removed_heads
    remove_heads(backbone, removed)
    after = dict(before)
    for layer, heads in removed.items():
        lost = set(before.get(layer, ()))
        left = [h for h in range(backbone.config.size("num_attention_heads")) if h not in lost]
        after[layer] = sorted(lost | {left[head] for head in heads})
    entry = {str(layer): list(heads) for layer, heads in sorted(after.items()) if heads}
    backbone.config = backbone.config.resized(**{REMOVED_HEADS: entry or None})


def whole_heads(backbone: Backbone, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with zeros for the heads that were removed, for a file.

    Args:
        backbone: of the model.
        state: the model's weights, by our names.
    """
    whole, removed = dict(state), backbone.config.removed_heads
    layers = transformer_layers(backbone) if removed else []
    for layer, heads in removed.items():
        count, attention = backbone.config.size("num_attention_heads"), layers[layer].attention
        size = attention.width // attention.num_heads
        left = [head for head in range(count) if head not in {*heads}]
        kept, width = _places(left, size), count * size
        rows = torch.cat([kept + i * width for i in range(3)])
        for name, value in state.items():
            _, middle, part = name.rpartition(f"layers.{layer}.attention.")
            if middle and part in ("qkv.weight", "qkv.bias"):
                whole[name] = value.new_zeros(3 * width, *value.shape[1:])
                whole[name][rows] = value
            elif middle and part == "output.weight":
                whole[name] = value.new_zeros(len(value), width)
                whole[name][:, kept] = value
    return whole


@torch.no_grad()
def keep_tokens(model: nn.Module, kept: Sequence[int]) -> None:
    """Remove all tokens but these from the table of embeddings and from the output layer.

    A companion of the model loses them, too, and keeps sharing its embeddings.

    Args:
        model: a backbone, or a model that holds one as `backbone`.
        kept: the numbers of the tokens that stay, in their order; among them every token that the
            configuration names (`pad_token_id`, ...).
    """
    backbone, companion = backbone_of(model), companion_of(model)
    named = token_entries(backbone)
    shared = shares_embeddings(model)
    if companion is not None and shared:  # each by itself, and together again afterwards
        beside = backbone_of(companion)
        beside.embeddings = deepcopy(beside.embeddings)
    table, places = backbone.embeddings.tokens, torch.tensor(kept)
    table.weight = _part(table.weight, table.weight[places])
    table.num_embeddings = len(kept)
    if table.padding_idx is not None:
        table.padding_idx = list(kept).index(table.padding_idx)
    bias = model.output_bias() if isinstance(model, LanguageModelHead) else None
    if bias is not None:
        model.bias = _part(bias, bias[places])
    own = getattr(model, "lm_head", None)  # an output layer that is not the table
    if isinstance(own, Linear):
        _keep_outputs(own, places)
    new = {old: number for number, old in enumerate(kept)}
    if "pad_token_id" in named:
        backbone.renumber_padding(new[named["pad_token_id"][0]])
    # Entries are a number each, or a list of several.
    numbers = {name: [new[old] for old in own] for name, own in named.items()}
    entries: dict[str, Any] = {
        name: own[0] if isinstance(getattr(backbone.config, name), int) else own
        for name, own in numbers.items()
    }
    backbone.config = backbone.config.resized(vocab_size=len(kept), **entries)
    if companion is not None:
        keep_tokens(companion, kept)
        if shared:
            share_embeddings(backbone, backbone_of(companion))


def token_entries(backbone: Backbone) -> dict[str, list[int]]:
    """The tokens of the vocabulary that entries of the configuration name, such as padding."""
    rows = len(backbone.embeddings.tokens.weight)
    named: dict[str, list[int]] = {}
    for name, value in vars(backbone.config).items():
        given = [value] if isinstance(value, int) else value
        if name.endswith("_token_id") and given is not None:
            named[name] = [token for token in given if 0 <= token < rows]
    return {name: tokens for name, tokens in named.items() if tokens}


def _places(units: Sequence[int], size: int) -> Tensor:
    """The numbers of all places that some units of `size` places take."""
    return (torch.tensor(units, dtype=torch.long)[:, None] * size + torch.arange(size)).flatten()


def _keep_outputs(linear: Linear, kept: Tensor) -> None:
    linear.weight = _part(linear.weight, linear.weight[kept])
    if linear.bias is not None:
        linear.bias = _part(linear.bias, linear.bias[kept])
    linear.out_features = len(kept)


def _keep_inputs(linear: Linear, kept: Tensor) -> None:
    linear.weight = _part(linear.weight, linear.weight[:, kept])
    linear.in_features = len(kept)


def _part(whole: Tensor, part: Tensor) -> nn.Parameter:
    """Make a part of a parameter a parameter, in memory of its own."""
    own = part.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(own, requires_grad=whole.requires_grad)
