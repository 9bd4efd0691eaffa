"""The ONNX graphs of a model: what they read and give, under the names that transformers uses.

An encoder, a classifier or a tagger is one graph. A language model is one graph with keys and
values of earlier tokens in and out. A translator is two: the encoder, and such a decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from onnx import TensorProto
from torch import nn

from pretune.errors import CheckpointError, with_article
from pretune.export.onnx_graph import GraphWriter
from pretune.export.onnx_layers import (
    KeysValues,
    Places,
    can_write,
    causal_mask,
    padding_mask,
    source_keys,
    write_layer,
    write_norm,
)
from pretune.export.onnx_record import Batch, Recorded, StandIn, with_backbone
from pretune.models.backbone import Backbone

#: Heads that write text token by token.
LANGUAGE_MODELS = ("causal_lm", "actor_critic")
#: Names of the files without their ending, as transformers.js and Optimum look for them.
MODEL, ENCODER, DECODER = "model", "encoder_model", "decoder_model_merged"
#: Sizes of inputs and outputs that differ from call to call.
TEXTS, TOKENS = "batch_size", "sequence_length"


@dataclass(frozen=True)
class Pooling:
    """How a text becomes one vector, as `Embedder` does it."""

    kind: str  # of `POOLINGS`
    normalize: bool  # whether vectors get length 1
    size: int | None = None  # only so many first numbers are kept
    max_length: int | None = None  # most tokens that are read of a text


@dataclass(frozen=True)
class Exported:
    """A model that is to be written.

    Attributes:
        model: the backbone, or the backbone with a head.
        head: its name in the family.
        segments: whether it reads segments (`token_type_ids`).
        pooling: of the vectors that a bare model gives; None: it gives none.
    """

    model: nn.Module
    head: str
    segments: bool
    pooling: Pooling | None = None

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        backbone = self.model if self.head == "backbone" else self.model.get_submodule("backbone")
        assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
        return backbone

    @property
    def writes(self) -> bool:
        """Whether it writes text token by token."""
        return self.head in LANGUAGE_MODELS or self.backbone.reads_pairs


def write_graphs(
    exported: Exported, new_graph: Callable[[nn.Module], GraphWriter]
) -> dict[str, GraphWriter]:
    """Write the graphs of a model, by the names of their files.

    Args:
        exported: the model.
        new_graph: begins a graph for a model.

    Raises:
        CheckpointError: a model that is no Transformer, or that computes what is not known here.
    """
    if exported.head == "replaced_tokens":
        raise CheckpointError(
            "a model that tells replaced tokens is there to be fine-tuned, and is not exported",
            "Fine-tune it first: pretune train RECIPE model.from=RUN. Its generator can be "
            "exported: RUN/best/generator.",
        )
    backbone = exported.backbone
    if not all(map(can_write, backbone.layers)):
        raise CheckpointError(
            f"{with_article(backbone.config.model_type)} model cannot be written as ONNX",
            "Only Transformers can, and of these those whose attention adds nothing to the scores, "
            "or relative positions as T5: BERT, ModernBERT, GPT-2, Llama, translators and others. "
            "Use the model in pretune, e.g. pretune serve.",
        )
    if backbone.reads_pairs:
        kinds = {ENCODER: _write_source, DECODER: _write_target}
    elif exported.head in LANGUAGE_MODELS:
        kinds = {MODEL: _write_decoder}
    else:
        kinds = {MODEL: _write_reader}
    graphs = {}
    for name, write in kinds.items():
        graph = new_graph(exported.model)
        table = getattr(exported.model, "output_table", None)
        if table is not None and name != ENCODER:
            graph.share(table())
        write(graph, exported)
        graphs[name] = graph
    return graphs


def other_engine(backbone: Backbone) -> str:
    """Say what else can be done with a model that one engine does not take."""
    ropes = [getattr(layer, "attention", None) for layer in backbone.layers]
    grown = any(part is not None and part.rope and part.rope.grown for part in ropes)
    if all(map(can_write, backbone.layers)) and not grown:
        return "--to onnx writes it."
    return (
        "--to onnx cannot write it either: use it in pretune (pretune serve), or give its folder, "
        "which is as transformers writes it, to that engine's own converter."
    )


# Models that read whole texts


def _write_reader(graph: GraphWriter, exported: Exported) -> None:
    """Write an encoder, or a decoder that does not write, with its head."""
    backbone, choices = exported.backbone, exported.head == "multiple_choice"
    # Every choice is a text of its own; they are numbered through.
    shape = [TEXTS, *(["num_choices"] if choices else []), TOKENS]
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if exported.segments else [])]
    inputs = {name: graph.input(name, shape) for name in names}
    if choices:
        rows = graph.add("Concat", graph.ints(-1), graph.size("input_ids", 2), axis=0)
        inputs = {name: graph.add("Reshape", value, rows) for name, value in inputs.items()}
    attention_mask = inputs["attention_mask"]
    length = graph.size(inputs["input_ids"], 1)
    if backbone.causal:
        positions = _counted_positions(graph, attention_mask)
        mask = causal_mask(graph, length, length, attention_mask)
    else:
        positions = graph.unsqueeze(graph.range_to(length), 0)
        mask = padding_mask(graph, attention_mask)
    # The embeddings are the family's own, and so is the pooler.
    batch = _batch(graph, inputs["input_ids"], positions, inputs.get("token_type_ids"))
    batch.means = partial(_means, graph, attention_mask)
    batch.last_but = partial(_last_but, graph, inputs["input_ids"], attention_mask)
    x = backbone.embeddings(batch).value
    places = Places(graph, positions, length, length)
    for layer in backbone.layers:
        x, _ = write_layer(graph, layer, x, mask, places=places)  # type: ignore[arg-type]
    if backbone.final_norm is not None:
        x = write_norm(graph, backbone.final_norm, x)
    pick = partial(_pick, graph, x, attention_mask)
    stand_in = StandIn(graph, backbone, x, pick, _pooler(backbone, batch))
    if exported.head == "backbone":
        _backbone_outputs(graph, exported, stand_in, attention_mask)
    else:
        _head_outputs(graph, exported, with_backbone(exported.model, stand_in), batch)


def _batch(graph: GraphWriter, ids: str, positions: str, segments: str | None = None) -> Batch:
    return Batch(
        tokens=Recorded(graph, ids),
        positions=Recorded(graph, positions),
        segments=None if segments is None else Recorded(graph, segments),
    )


def _means(graph: GraphWriter, attention_mask: str, values: Recorded) -> Recorded:
    """The mean of each text's rows, as `PackedBatch.means`."""
    weights = graph.as_float(graph.unsqueeze(attention_mask, 2))
    total = graph.add(
        "ReduceSum", graph.add("Mul", values.value, weights), graph.ints(1), keepdims=0
    )
    count = graph.add("ReduceSum", weights, graph.ints(1), keepdims=0)
    return Recorded(graph, graph.add("Div", total, count))


def _counted_positions(graph: GraphWriter, attention_mask: str) -> str:
    """The place of each token among those that are no padding, on whichever side that is."""
    counted = graph.add("CumSum", attention_mask, graph.whole(1))
    return graph.add("Max", graph.add("Sub", counted, graph.whole(1)), graph.whole(0))


def _pick(graph: GraphWriter, hidden: str, attention_mask: str, which: str) -> str:
    """The hidden state `[batch, hidden]` of each text's first or last token."""
    if which == "first":
        return graph.add("Gather", hidden, graph.whole(0), axis=1)
    # The last one that is no padding: where the count of tokens is highest for the first time.
    counted = graph.add("CumSum", attention_mask, graph.whole(1))
    last = graph.add("ArgMax", counted, axis=1, keepdims=1)
    return graph.add("GatherND", hidden, last, batch_dims=1)


def _last_but(graph: GraphWriter, ids: str, attention_mask: str, pad: int) -> Recorded:
    """The number `[batch, 1]` of each text's last token that is not `pad`."""
    others = graph.add("Not", graph.add("Equal", ids, graph.whole(pad)))
    kept = graph.add("Mul", attention_mask, graph.add("Cast", others, to=TensorProto.INT64))
    counted = graph.add("CumSum", kept, graph.whole(1))
    return Recorded(graph, graph.add("ArgMax", counted, axis=1, keepdims=1))


def _pooler(backbone: Backbone, batch: Batch) -> Callable[[Any], Any] | None:
    """The family's pooler as a function of first tokens; None where it has none."""
    if getattr(backbone, "pooler", None) is None:
        return None
    return lambda first: backbone.pool(first, batch, batch.first)  # type: ignore[arg-type]


def _backbone_outputs(
    graph: GraphWriter, exported: Exported, stand_in: StandIn, attention_mask: str
) -> None:
    width = exported.backbone.config.size("hidden_size")
    graph.output("last_hidden_state", stand_in.hidden, [TEXTS, TOKENS, width])
    pooled = stand_in.pooled()
    if pooled is not None:
        graph.output("pooler_output", pooled.value, [TEXTS, width])
    pooling = exported.pooling
    if pooling is None:
        return
    vector = _pooled(graph, pooling.kind, stand_in, attention_mask)
    if pooling.normalize:
        vector = _unit(graph, vector)
    if pooling.size is not None:
        vector = graph.add("Slice", vector, graph.ints(0), graph.ints(pooling.size), graph.ints(1))
    graph.output("sentence_embedding", vector, [TEXTS, pooling.size or width])


def _pooled(graph: GraphWriter, kind: str, stand_in: StandIn, attention_mask: str) -> str:
    """One vector for each text, as `pool` in inference/embed.py computes it."""
    if kind in ("cls", "last"):
        return stand_in.pick("first" if kind == "cls" else "last")
    hidden = stand_in.hidden
    real = graph.unsqueeze(attention_mask, 2)
    if kind == "max":
        low = graph.add(
            "Where", graph.add("Cast", real, to=TensorProto.BOOL), hidden, graph.number(-3.4e38)
        )
        # Its axes are an attribute before opset 18, and an input from then on.
        if graph.opset < 18:
            return graph.add("ReduceMax", low, axes=[1], keepdims=0)
        return graph.add("ReduceMax", low, graph.ints(1), keepdims=0)
    weights = graph.as_float(real)
    total = graph.add("ReduceSum", graph.add("Mul", hidden, weights), graph.ints(1), keepdims=0)
    count = graph.add("ReduceSum", weights, graph.ints(1), keepdims=0)
    if kind == "mean_sqrt_len_tokens":
        count = graph.add("Sqrt", count)
    return graph.add("Div", total, count)


def _unit(graph: GraphWriter, vector: str) -> str:
    """Make vectors of length 1, as `torch.nn.functional.normalize`."""
    squares = graph.add("ReduceSum", graph.add("Mul", vector, vector), graph.ints(1), keepdims=1)
    length = graph.add("Max", graph.add("Sqrt", squares), graph.number(1e-12))
    return graph.add("Div", vector, length)


def _head_outputs(graph: GraphWriter, exported: Exported, head: nn.Module, batch: Batch) -> None:
    """Write what the head computes, under the names of transformers."""
    kind = exported.head
    if kind == "pretraining":
        both = head(batch, both=True)
        graph.output("prediction_logits", both.predictions.value, [TEXTS, TOKENS, "vocab_size"])
        graph.output("seq_relationship_logits", both.seq_relationship_logits.value, [TEXTS, 2])
    elif kind == "question_answering":
        ends = graph.add_many("Split", 2, head(batch).value, graph.ints(1, 1), axis=-1)
        for name, value in zip(("start_logits", "end_logits"), ends, strict=True):
            graph.output(name, graph.add("Squeeze", value, graph.ints(-1)), [TEXTS, TOKENS])
    elif kind == "multiple_choice":
        shape = graph.add("Concat", *(graph.size("input_ids", axis) for axis in (0, 1)), axis=0)
        scores = graph.add("Reshape", head(batch).value, shape)
        graph.output("logits", scores, [TEXTS, "num_choices"])
    elif kind == "token_classification_crf":
        # The scores of words alone: the best path through them is the reader's (`crf.json`).
        emissions = head(batch, select=batch.every).logits
        graph.output("logits", emissions.value, [TEXTS, TOKENS, "num_labels"])
    else:
        per_text: list[str | int] = [TEXTS, "num_labels"]
        shapes: dict[str, list[str | int]] = {
            "sequence_classification": per_text,
            "masked_lm": [TEXTS, TOKENS, "vocab_size"],
        }
        graph.output("logits", head(batch).value, shapes.get(kind, [TEXTS, TOKENS, "num_labels"]))


# Models that write


def _past(
    graph: GraphWriter, name: str, layer: int, heads: int, size: int, tokens: str
) -> KeysValues:
    """Declare the inputs for keys and values of earlier passes."""
    shape: list[str | int] = [TEXTS, heads, tokens, size]
    both = (
        graph.input(f"past_key_values.{layer}.{name}{part}", shape, TensorProto.FLOAT)
        for part in ("key", "value")
    )
    return KeysValues(*both)


def _present(graph: GraphWriter, name: str, layer: int, seen: KeysValues, shape: list[Any]) -> None:
    for part, value in (("key", seen.keys), ("value", seen.values)):
        graph.output(f"present.{layer}.{name}{part}", value, shape)


def _write_decoder(graph: GraphWriter, exported: Exported) -> None:
    """Write a language model; without earlier tokens, the past has 0 of them."""
    backbone = exported.backbone
    graph.input("input_ids", [TEXTS, TOKENS])
    everything = "past_sequence_length + sequence_length"
    graph.input("attention_mask", [TEXTS, everything])
    graph.input("position_ids", [TEXTS, TOKENS])
    attention: Any = backbone.layers[0].attention
    heads, size = attention.num_kv_heads, attention.width // attention.num_heads
    past = [
        _past(graph, "", i, heads, size, "past_sequence_length")
        for i in range(len(backbone.layers))
    ]
    keys = graph.size("attention_mask", 1)
    new = graph.size("input_ids", 1)
    mask = causal_mask(graph, new, keys, "attention_mask")
    places = Places(graph, "position_ids", new, keys)
    batch = _batch(graph, "input_ids", "position_ids")
    x, present = backbone.embeddings(batch).value, []
    for layer, earlier in zip(backbone.layers, past, strict=True):
        x, seen = write_layer(graph, layer, x, mask, past=earlier, places=places)  # type: ignore[arg-type]
        present.append(seen)
    if backbone.final_norm is not None:
        x = write_norm(graph, backbone.final_norm, x)
    _logits(graph, exported, x, batch)
    for i, seen in enumerate(present):
        _present(graph, "", i, seen, [TEXTS, heads, everything, size])


def _logits(graph: GraphWriter, exported: Exported, x: str, batch: Batch) -> None:
    """Write the output layer of a language model as its head computes it."""
    logits = exported.model.decode(Recorded(graph, x))  # type: ignore[operator]
    graph.output("logits", logits.value, [TEXTS, TOKENS, "vocab_size"])


def _write_source(graph: GraphWriter, exported: Exported) -> None:
    """Write the encoder of a translator."""
    model: Any = exported.backbone
    graph.input("input_ids", [TEXTS, "encoder_sequence_length"])
    graph.input("attention_mask", [TEXTS, "encoder_sequence_length"])
    length = graph.size("input_ids", 1)
    positions = graph.unsqueeze(graph.range_to(length), 0)
    places = Places(graph, positions, length, length)
    mask = padding_mask(graph, "attention_mask")
    x = model.embeddings(_batch(graph, "input_ids", positions)).value
    for layer in list(model.layers)[: model.stacks[0]]:
        x, _ = write_layer(graph, layer, x, mask, places=places)
    if model.source_norm is not None:
        x = write_norm(graph, model.source_norm, x)
    width = model.config.size("hidden_size")
    graph.output("last_hidden_state", x, [TEXTS, "encoder_sequence_length", width])


def _write_target(graph: GraphWriter, exported: Exported) -> None:
    """Write the decoder of a translator.

    `use_cache_branch` says whether the keys and values of the source are among the inputs already;
    the first pass computes them.
    """
    model: Any = exported.backbone
    layers = list(model.layers)[model.stacks[0] :]
    heads, width = layers[0].attention.num_heads, model.config.size("hidden_size")
    size, source = layers[0].attention.width // heads, "encoder_sequence_length"
    graph.input("encoder_attention_mask", [TEXTS, source])
    graph.input("input_ids", [TEXTS, TOKENS])
    graph.input("encoder_hidden_states", [TEXTS, source, width], TensorProto.FLOAT)
    past = []
    for i in range(len(layers)):
        own = _past(graph, "decoder.", i, heads, size, "past_decoder_sequence_length")
        past.append((own, _past(graph, "encoder.", i, heads, size, "past_encoder_sequence_length")))
    graph.input("use_cache_branch", [1], TensorProto.BOOL)
    seen_sources = _choose_sources(graph, layers, [earlier for _, earlier in past])

    # Positions go on where the past ends.
    new, before = graph.size("input_ids", 1), graph.size(past[0][0].keys, 2)
    positions = graph.unsqueeze(graph.add("Add", graph.range_to(new), before), 0)
    batch, keys = _batch(graph, "input_ids", positions), graph.add("Add", new, before)
    places = Places(graph, positions, new, keys)
    mask = causal_mask(graph, new, keys, None)
    source_mask = padding_mask(graph, "encoder_attention_mask")
    x, present = model.embeddings.of_targets(batch, 1).value, []
    for layer, (own, _), of_source in zip(layers, past, seen_sources, strict=True):
        read: dict[str, Any] = {"past": own, "source": of_source, "source_mask": source_mask}
        x, seen = write_layer(graph, layer, x, mask, places=places, **read)
        present.append((seen, of_source))
    if model.final_norm is not None:
        x = write_norm(graph, model.final_norm, x)
    _logits(graph, exported, x, batch)
    everything = "past_decoder_sequence_length + sequence_length"
    for i, (seen, of_source) in enumerate(present):
        _present(graph, "decoder.", i, seen, [TEXTS, heads, everything, size])
        _present(graph, "encoder.", i, of_source, [TEXTS, heads, source, size])


def _choose_sources(
    graph: GraphWriter, layers: list[Any], past: list[KeysValues]
) -> list[KeysValues]:
    """Write the keys and values of the source for each layer: those given, or computed now."""
    with graph.branch() as kept:
        given = [graph.add("Identity", v) for each in past for v in (each.keys, each.values)]
    with graph.branch() as computed:
        fresh = [source_keys(graph, layer.cross, "encoder_hidden_states") for layer in layers]
    names = [value for each in fresh for value in (each.keys, each.values)]
    values = graph.choose("use_cache_branch", (kept, given), (computed, names))
    return [KeysValues(*values[i : i + 2]) for i in range(0, len(values), 2)]
