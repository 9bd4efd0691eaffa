"""`pretune export --to ctranslate2`: a GPT-2, a translator or a T5 as a folder for CTranslate2.

model.bin           the weights, in float32, or with --int8 in 8 bits
config.json         CTranslate2's own: which tokens begin and end a text
vocabulary.json     the tokens; of a translator shared_vocabulary.json, or one for each language
tokenizer.json      as in the model's folder
int8.json           what int8 costs, where that was measured
example.py          runs it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretune.bundle.bundle import Bundle, load, save_tokenizer
from pretune.checkpoints.atomic_io import atomic_folder
from pretune.checkpoints.manifest import write_manifest
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError, RunError, not_writable, with_article
from pretune.export.ctranslate2_engine import CTranslate2Engine, EngineModel, engine_task
from pretune.export.ctranslate2_example import program
from pretune.export.onnx_check import OutputDifference, compare_outputs
from pretune.export.onnx_files import (
    EXAMPLE,
    GATE_FILE,
    EngineExport,
    exported_model,
    refuse_different,
    write_json,
)
from pretune.export.onnx_models import LANGUAGE_MODELS, Exported, other_engine
from pretune.export.output_folder import check_new_folder
from pretune.export.packages import needed
from pretune.export.quality_gate import GateError, GateLimits, SmallerForm, judge
from pretune.models.layers import GatedFeedForward, Linear, sinusoidal_positions
from pretune.models.transformer import LAYER_NORM_EPS
from pretune.tasks.dialogue.dialogue import Dialogue
from pretune.tasks.translation.rewriting import Rewriting
from pretune.tokenizers.tokenizer import Tokenizer

WEIGHTS = "model.bin"
#: Tokens that a prompt of the check has, and that are written after it.
PROMPT, WRITTEN = 5, 8
#: CTranslate2's names of the parts of a layer, by ours.
_PARTS = {
    "attention.qkv": "self_attention/linear_0",
    "attention.output": "self_attention/linear_1",
    "attention_norm": "self_attention/layer_norm",
    "cross.query": "attention/linear_0",
    "cross.kv": "attention/linear_1",
    "cross.output": "attention/linear_2",
    "cross_norm": "attention/layer_norm",
    "feed_forward.up": "ffn/linear_0",
    "feed_forward.down": "ffn/linear_1",
    "feed_forward_norm": "ffn/layer_norm",
}
#: CTranslate2's names of the weights of a module, by ours; those of a LayerNorm differ.
_WEIGHTS = {"weight": "weight", "bias": "bias"}
_NORM = {"weight": "gamma", "bias": "beta"}
#: Families with relative positions, RMSNorm and gates.
_RELATIVE = ("t5", "mt5")
#: CTranslate2's names of activations, by ours.
_ACTIVATIONS = {
    "gelu": "GELU",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh"), "GELUTanh"),
    "relu": "RELU",
    **dict.fromkeys(("silu", "swish"), "SWISH"),
    "tanh": "Tanh",
}


def export_ctranslate2(
    source: str | Path | Bundle,
    folder: Path,
    *,
    int8: bool = False,
    data: Records | Sequence[str] | None = None,
    limits: GateLimits | None = None,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EngineExport:
    """Write a model for CTranslate2 into a new folder.

    Args:
        source: from `load`, or what `load` takes.
        folder: must not exist yet.
        int8: write it in 8 bits instead of float32.
        data: labelled records of the task that int8 is measured on; None: it is not measured.
        limits: what int8 may lose there.
        force: keep int8 even if it loses more.
        allow_pickle: as for `load`.
        progress: called with the number of batches done, and of all, in each check.

    Raises:
        CheckpointError: the model cannot be read, CTranslate2 has no such model, or what was
            written does not compute the same.
        RunError: the folder exists, or a package is missing.
        GateError: int8 loses more than `limits` allow.
    """
    ct2 = needed("ctranslate2")
    check_new_folder(folder)
    bundle = source if isinstance(source, Bundle) else load(source, allow_pickle=allow_pickle)
    exported = exported_model(bundle)
    _check_supported(bundle)
    if data is not None:
        _check_measured(bundle, int8=int8)
    differences = {}
    gate = None
    try:
        with atomic_folder(folder) as place:
            # float32 comes first in any case: it tells a mistake from what rounding does.
            for small in (False, True) if int8 else (False,):
                for path in place.iterdir():
                    path.unlink()
                _write_model(ct2, bundle, place, small)
                engine = CTranslate2Engine(place, translates=bundle.backbone.reads_pairs)
                differences[small] = compare(exported, engine, progress)
                refuse_different(differences[small].largest, small=small)
            if data is not None:
                form = _int8_form(ct2, bundle, engine, place)
                gate = judge(
                    bundle, form, data, limits or GateLimits(), force=force, progress=progress
                )
                if gate.chosen is None:
                    raise GateError(gate)
                write_json(place / GATE_FILE, gate.record())
            save_tokenizer(bundle.tokenizer, bundle.family, place)
            text = program(bundle)
            (place / EXAMPLE).write_text(text, encoding="utf-8")
            write_manifest(place)
            files = {WEIGHTS: (place / WEIGHTS).stat().st_size}
    except OSError as error:
        raise not_writable(folder, "--output", error) from None
    return EngineExport(folder, files, differences[False], differences.get(True), gate, text)


def _check_supported(bundle: Bundle) -> None:
    """Refuse what CTranslate2 does not compute, or not from such a tokenizer."""
    family = bundle.family.model_type
    translates = family in ("marian", "transformer", *_RELATIVE) and bundle.backbone.reads_pairs
    head = None if bundle.task is None else bundle.task.head
    writes = family == "gpt2" and head in LANGUAGE_MODELS
    if not writes and not (translates and head == "translation"):
        what = "bare" if bundle.task is None else bundle.task.name
        raise CheckpointError(
            f"{with_article(family)} model ({what}) cannot be written for CTranslate2 here",
            "A GPT-2 that writes text can, and a Marian or a T5 that translates or summarizes. "
            f"{other_engine(bundle.backbone)}",
        )
    if bundle.tokenizer.written.end_id is None:
        raise CheckpointError(
            "the tokenizer has no token for the end of a text, which CTranslate2 needs",
            other_engine(bundle.backbone),
        )


def _check_measured(bundle: Bundle, *, int8: bool) -> None:
    """Refuse data where there is nothing to measure on them."""
    if not int8:
        raise RunError("--data measures what --int8 loses", "Add --int8, or leave it out.")
    if isinstance(bundle.task, Dialogue):
        name = bundle.task.name
        raise RunError(
            f"--data is for measuring --int8, which cannot be done here for the task {name}",
            "Leave it out.",
        )


def _int8_form(ct2: Any, bundle: Bundle, engine: CTranslate2Engine, place: Path) -> SmallerForm:
    """Describe the folder in 8 bits to the gate."""
    task = bundle.task
    assert task is not None  # noqa: S101 - `_check_supported`
    # A translator is judged by what CTranslate2's own search writes.
    task = engine_task(task) if isinstance(task, Rewriting) else task
    return SmallerForm(
        name="all matrices, tables",
        bundle=replace(bundle, model=EngineModel(engine).eval(), task=task),
        engine=f"ctranslate2 {ct2.__version__}",
        matrices=sum(isinstance(part, Linear) for part in bundle.model.modules()),
        megabytes=(place / WEIGHTS).stat().st_size / 1e6,
        batch_tokens=1024,
    )


# Writing


def _write_model(ct2: Any, bundle: Bundle, place: Path, int8: bool) -> None:
    """Write weights, config and vocabulary, by CTranslate2's own specification of the model."""
    describe = _writer
    if bundle.backbone.reads_pairs:
        describe = _relative if bundle.family.model_type in _RELATIVE else _translator
    spec = describe(ct2, bundle)
    spec.validate()
    spec.optimize("int8" if int8 else "float32")
    spec.save(str(place))


def _writer(ct2: Any, bundle: Bundle) -> Any:
    """Describe a GPT-2."""
    config: Any = bundle.backbone.config
    spec = ct2.specs.TransformerDecoderModelSpec.from_config(
        config.n_layer, config.n_head, pre_norm=True, activation=_activation(ct2, bundle)
    )
    embeddings: Any = bundle.backbone.embeddings
    decoder, table = spec.decoder, _array(embeddings.tokens.weight)
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = table
    decoder.position_encodings.encodings = _array(embeddings.positions.weight)
    _fill(decoder.layer_norm, bundle.backbone.final_norm, _NORM)
    _fill_layers(ct2, decoder, bundle.backbone.layers)
    spec.register_vocabulary(vocabulary(bundle.tokenizer, len(table)))
    _fill_config(spec.config, bundle, config.layer_norm_epsilon)
    return spec


def _translator(ct2: Any, bundle: Bundle) -> Any:
    """Describe a translator; the decoder begins with the token that ours begins with."""
    model: Any = bundle.backbone
    config, embeddings = model.config, model.embeddings
    common = {"pre_norm": config.normalize_before, "activation": _activation(ct2, bundle)}
    specs = ct2.specs
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(
            config.encoder_layers, config.encoder_attention_heads, **common
        ),
        specs.TransformerDecoderSpec(
            config.decoder_layers, config.decoder_attention_heads, **common
        ),
    )
    tables = [_array(embeddings.tokens.weight), _array(embeddings.output)]
    # CTranslate2 reads positions from a table: as long as the longest text of the task.
    longest = 0 if bundle.task is None else bundle.task.options.max_length
    rows = max(config.max_position_embeddings, longest + 1)
    positions = _array(sinusoidal_positions(rows, config.d_model, interleaved=False))
    tokens = zip(
        (spec.encoder, spec.decoder),
        (spec.encoder.embeddings[0], spec.decoder.embeddings),
        tables,
        (model.source_norm, model.final_norm),
        strict=True,
    )
    for stack, place, table, norm in tokens:
        place.weight = table
        stack.scale_embeddings = float(embeddings.scale)
        stack.position_encodings.encodings = positions
        if norm is not None:
            _fill(stack.layer_norm, norm, _NORM)
    layers = list(model.layers)
    _fill_layers(ct2, spec.encoder, layers[: config.encoder_layers])
    _fill_layers(ct2, spec.decoder, layers[config.encoder_layers :])
    spec.decoder.projection.weight = tables[1]
    bias = bundle.model.get_parameter("bias")[0]
    if bool(bias.any()):
        spec.decoder.projection.bias = _array(bias)
    spec.register_source_vocabulary(vocabulary(bundle.tokenizer, len(tables[0])))
    words = vocabulary(bundle.tokenizer.written, len(tables[1]))
    spec.register_target_vocabulary(words)
    _fill_config(spec.config, bundle, LAYER_NORM_EPS)
    spec.config.decoder_start_token = words[config.decoder_start_token_id]
    return spec


def _relative(ct2: Any, bundle: Bundle) -> Any:
    """Describe a T5: relative positions for each stack, RMSNorm, and maps without bias."""
    model: Any = bundle.backbone
    config, embeddings = model.config, model.embeddings
    spec = ct2.specs.TransformerSpec.from_config(
        (config.num_layers, config.num_decoder_layers),
        config.num_heads,
        pre_norm=True,
        activation=_activation(ct2, bundle),
        ffn_glu=config.gated,
        relative_attention_bias=True,
        rms_norm=True,
    )
    layers, count = list(model.layers), config.num_layers
    source, target = embeddings.source_places, embeddings.target_places
    _fill_relative(ct2, spec.encoder, layers[:count], source, model.source_norm)
    _fill_relative(ct2, spec.decoder, layers[count:], target, model.final_norm)
    table = _array(embeddings.tokens.weight)
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = table
    head: Any = bundle.model
    spec.decoder.projection.weight = _array(head.output_table())
    if config.output_scale != 1.0:
        spec.decoder.scale_outputs = config.output_scale
    words = vocabulary(bundle.tokenizer, len(table))
    spec.register_source_vocabulary(words)
    spec.register_target_vocabulary(words)
    _fill_config(spec.config, bundle, config.layer_norm_epsilon)
    spec.config.decoder_start_token = words[config.decoder_start_token_id]
    return spec


def _fill_relative(ct2: Any, stack: Any, layers: Any, positions: Any, norm: Any) -> None:
    """Copy the weights of a stack, whose layers share one table of relative positions."""
    stack.scale_embeddings = False
    _fill(stack.layer_norm, norm, _NORM)
    _fill_layers(ct2, stack, layers)
    added = _array(positions.table.weight)
    for layer in stack.layer:
        layer.self_attention.relative_attention_bias = added
        layer.self_attention.relative_attention_max_distance = np.int32(positions.longest)


def _activation(ct2: Any, bundle: Bundle) -> Any:
    config = bundle.backbone.config
    name = _ACTIVATIONS[getattr(config, config.activation_name)]
    return getattr(ct2.specs.Activation, name)


def _array(weight: Tensor) -> Any:
    """Copy a weight: rounding to 8 bits works in place."""
    return weight.detach().to("cpu", torch.float32).clone().numpy()


def _fill(part: Any, module: Any, names: dict[str, str]) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        setattr(part, names[name], _array(parameter))


def _fill_layers(ct2: Any, stack: Any, layers: Any) -> None:
    """Copy the weights of all layers of a stack."""
    find = ct2.specs.model_spec.index_spec
    for spec, layer in zip(stack.layer, layers, strict=True):
        # Another factor of the scores than the usual one.
        if layer.attention.scale is not None:
            spec.self_attention.queries_scale = float(layer.attention.scale)
        if layer.cross is not None and layer.cross.scale is not None:
            spec.attention.queries_scale = float(layer.cross.scale)
        gated = isinstance(layer.feed_forward, GatedFeedForward)
        for ours, theirs in _PARTS.items():
            if ours.startswith("cross") and layer.cross is None:
                continue
            if gated and ours == "feed_forward.up":  # the gate, which the activation is for, first
                gate, up = np.split(_array(layer.feed_forward.gate_up.weight), 2)
                spec.ffn.linear_0.weight, spec.ffn.linear_0_noact.weight = gate, up
                continue
            module = layer.get_submodule(ours)
            _fill(find(spec, theirs), module, _NORM if ours.endswith("norm") else _WEIGHTS)


def _fill_config(config: Any, bundle: Bundle, eps: float) -> None:
    written = bundle.tokenizer.written
    end = written.tokens([written.end_id or 0])[0]
    config.bos_token = config.eos_token = end
    config.unk_token = written.special.get("unk_token", end)
    config.layer_norm_epsilon = eps


def vocabulary(tokenizer: Tokenizer, rows: int) -> list[str]:
    """List the tokens of a table of embeddings; a row without a token gets a name of its own."""
    known = {i: token for token, i in tokenizer.engine.get_vocab(with_added_tokens=True).items()}
    return [known.get(row, f"[UNUSED{row}]") for row in range(rows)]


# Checking


def compare(
    exported: Exported,
    engine: CTranslate2Engine,
    progress: Callable[[int, int], None] | None = None,
) -> OutputDifference:
    """Compare a folder with the model: logits or log-probabilities, and what both write.

    Args:
        exported: the model.
        engine: the folder, opened.
        progress: called with the number of batches done, and of all.
    """
    outputs = _translations if engine.translates else _continuations
    return compare_outputs(exported, partial(outputs, exported.model, engine), progress)


@torch.inference_mode()
def _continuations(
    model: Any, engine: CTranslate2Engine, batch: PackedBatch
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what should be equal for a model that continues texts."""
    yield model(batch), engine.logits(batch)
    parts = torch.split(batch.tokens, list(batch.layout.lengths))
    prompts = [part[:PROMPT].tolist() for part in parts]
    room = model.context_length - max(map(len, prompts))
    if room > 0:
        written = engine.write(prompts, min(WRITTEN, room))
        texts = [[*prompt, *ids] for prompt, (ids, _) in zip(prompts, written, strict=True)]
        yield from _chosen(model(PackedBatch.of([ids[:-1] for ids in texts])), texts, written)


@torch.inference_mode()
def _translations(
    model: Any, engine: CTranslate2Engine, batch: PackedBatch
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what should be equal for a translator."""
    (start,), end = model.opening, model.backbone.config.eos_token_id
    sources, targets = (
        [part.tolist() for part in torch.split(side.tokens, list(side.layout.lengths))]
        for side in batch.pairs
    )
    # How probable random translations are, and the ends of them.
    pairs = _pairs(sources, [[start, *ids] for ids in targets])
    labels = torch.tensor([token for ids in targets for token in [*ids, end]])
    yield model(pairs, labels=labels, each=True), engine.log_probs(*pairs.pairs)
    written = engine.write(sources, WRITTEN)
    texts = [[start, *ids] for ids, _ in written]
    logits = model(_pairs(sources, [ids[:-1] for ids in texts]))
    yield from _chosen(logits, texts, written)


def _pairs(sources: Sequence[list[int]], targets: Sequence[list[int]]) -> PackedBatch:
    both = [ids for pair in zip(sources, targets, strict=True) for ids in pair]
    packed = PackedBatch.of(both)
    choices = (2,) * len(sources)
    return PackedBatch(packed.tokens, packed.layout, packed.positions, choices=choices)


def _chosen(
    logits: Tensor, texts: Sequence[Sequence[int]], written: Sequence[tuple[list[int], float]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Compare what CTranslate2 wrote with what the model finds most probable at each place.

    Args:
        logits: `[T, vocab]` ours, of all texts without their last tokens.
        texts: what was read and written.
        written: what was written, with the sum of its log-probabilities.
    """
    rows = torch.split(logits, [len(ids) - 1 for ids in texts])
    scores = []
    for own, ids, (new, _) in zip(rows, texts, written, strict=True):
        places, chosen = own[len(ids) - 1 - len(new) :], torch.tensor(new)
        yield places.amax(-1), places.gather(1, chosen[:, None])[:, 0]
        scores.append(float(places.log_softmax(-1).gather(1, chosen[:, None]).sum()))
    yield torch.tensor(scores), torch.tensor([score for _, score in written])
