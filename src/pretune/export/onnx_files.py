"""`pretune export --to onnx`: a folder as the Hugging Face Hub has them, checked before it is kept.

onnx/model.onnx             float32; a translator has encoder_model.onnx and
                            decoder_model_merged.onnx
onnx/model_quantized.onnx   the same in 8 bits, with --int8
config.json, tokenizer.json, tokenizer_config.json, special_tokens_map.json, ...
onnx/int8.json              what int8 costs, where that was measured
onnx/crf.json               of a tagger with a CRF: what the best path is chosen by
example.py                  twenty lines that run it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pretune.bundle.bundle import Bundle, load, save_without_weights
from pretune.checkpoints.atomic_io import atomic_folder
from pretune.checkpoints.manifest import write_manifest
from pretune.data.records import Records
from pretune.errors import CheckpointError, PretuneError, RunError, not_writable, note
from pretune.export.onnx_check import TOLERANCE, OutputDifference, compare
from pretune.export.onnx_example import example
from pretune.export.onnx_graph import LAST_OPSET, OPSET, GraphWriter
from pretune.export.onnx_models import LANGUAGE_MODELS, MODEL, Exported, Pooling, write_graphs
from pretune.export.onnx_runtime import OnnxEmbedder, OnnxFile, OnnxModel
from pretune.export.output_folder import check_new_folder
from pretune.export.packages import needed
from pretune.export.quality_gate import (
    GateError,
    GateLimits,
    GateResult,
    SmallerForm,
    judge,
)
from pretune.inference.embed import Embedder
from pretune.models.layers import Linear
from pretune.models.lora import adapters, learned_rows
from pretune.models.packed import is_int8
from pretune.tasks.base import WritesAnswers
from pretune.tasks.tagging.scoring import well_formed
from pretune.tasks.tagging.tag import Tagger
from pretune.version import __version__

FOLDER = "onnx"
EXAMPLE = "example.py"
#: What the gate found out about the file in 8 bits.
GATE_FILE = "int8.json"
#: What rounding to 8 bits may do to an output on random texts, as a share of the largest output;
#: whether answers stay the same is for labelled data to say.
INT8_TOLERANCE = 0.5
#: A protobuf message cannot be larger than 2 GiB; larger weights go to a file of their own.
LARGEST_FILE = 2**31 - 2**24
#: Heads whose answers the gate compares by what an ONNX file gives.
MEASURED = (
    *("sequence_classification", "multiple_choice", "question_answering"),
    *("token_classification", "token_classification_crf", "masked_lm", "causal_lm"),
)


@dataclass(frozen=True)
class EngineExport:
    """What was written for another engine.

    Attributes:
        folder: where.
        files: the size of each file of weights in bytes, by its name.
        difference: float32 and the model itself.
        int8: int8 and the model itself; None: not written.
        gate: int8 on labelled data; None: not measured.
        example: a Python program that runs it.
    """

    folder: Path
    files: Mapping[str, int]
    difference: OutputDifference
    int8: OutputDifference | None
    gate: GateResult | None
    example: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        gate = None if self.gate is None else self.gate.to_dict()
        return {**asdict(self), "folder": str(self.folder), "gate": gate}


@dataclass(frozen=True)
class OnnxExport(EngineExport):
    """What was written, with the version of ONNX's operators."""

    opset: int


def export_onnx(
    source: str | Path | Bundle,
    folder: Path,
    *,
    opset: int = OPSET,
    int8: bool = False,
    data: Records | Sequence[str] | None = None,
    limits: GateLimits | None = None,
    force: bool = False,
    allow_pickle: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> OnnxExport:
    """Write a model as ONNX into a new folder.

    Args:
        source: from `load`, or what `load` takes.
        folder: must not exist yet.
        opset: version of ONNX's operators, from `OPSET` to `LAST_OPSET`.
        int8: also write it in 8 bits.
        data: what int8 is measured on: labelled records of the task, or texts for a model that
            gives vectors; None: it is not measured.
        limits: what int8 may lose there.
        force: keep int8 even if it loses more.
        allow_pickle: as for `load`.
        progress: called with the number of batches done, and of all, in each check.

    Raises:
        CheckpointError: the model cannot be read, cannot be written as ONNX, or what was written
            does not compute the same.
        RunError: the folder exists, a package is missing, or there is no such opset.
        GateError: int8 loses more than `limits` allow.
    """
    check_opset(opset)
    for package in ("onnx", "onnxruntime"):
        needed(package)
    check_new_folder(folder)
    bundle = source if isinstance(source, Bundle) else load(source, allow_pickle=allow_pickle)
    exported = exported_model(bundle)
    options: Any = getattr(bundle.task, "options", None)
    long = getattr(options, "long", "cut")
    if long != "cut" and options.pair:
        note(
            f"task.long={long}: the file reads sequences of tokens, whichever they are; example.py "
            "cuts long pairs, where pretune reads more of them"
        )
    elif long != "cut":
        note(
            f"task.long={long}: the file reads sequences of tokens, whichever they are; example.py "
            "makes them of long texts as pretune does"
        )
    if data is not None:
        _check_measured(bundle, exported, int8=int8)
    gate, program = None, example(bundle, exported, int8=int8)
    try:
        with atomic_folder(folder) as place:
            (place / FOLDER).mkdir()
            _write_beside(bundle, exported, place, program)
            differences = {}
            for small in (False, True) if int8 else (False,):
                files = _write_graphs(bundle, exported, place / FOLDER, opset, small)
                differences[small] = compare(exported, files, progress)
                refuse_different(differences[small].largest, small=small)
            if data is not None:
                form = _int8_form(bundle, exported, files[MODEL])
                gate = judge(
                    bundle, form, data, limits or GateLimits(), force=force, progress=progress
                )
                if gate.chosen is None:
                    raise GateError(gate)
                write_json(place / FOLDER / GATE_FILE, gate.record())
            write_manifest(place)
            written = sorted((place / FOLDER).glob("*.onnx*"))
            sizes = {path.name: path.stat().st_size for path in written}
    except OSError as error:
        raise not_writable(folder, "--output", error) from None
    return OnnxExport(
        folder, sizes, differences[False], differences.get(True), gate, program, opset
    )


def _check_measured(bundle: Bundle, exported: Exported, *, int8: bool) -> None:
    """Refuse data where there is nothing to measure on them."""
    if not int8:
        raise RunError("--data measures what --int8 loses", "Add --int8, or leave it out.")
    if bundle.task is None:
        measured = exported.pooling is not None
    else:
        measured = exported.head in MEASURED and not isinstance(bundle.task, WritesAnswers)
    if not measured:
        raise RunError(
            "--data is for measuring --int8, which cannot be done here for this kind of model",
            "Leave it out.",
        )


def _int8_form(bundle: Bundle, exported: Exported, file: OnnxFile) -> SmallerForm:
    """Describe the int8 file to the gate."""
    model = OnnxModel(file, exported).eval()
    bare = exported.head == "backbone"
    return SmallerForm(
        name="all matrices, tables",
        bundle=bundle if bare else replace(bundle, model=model),
        engine=f"onnxruntime {needed('onnxruntime').__version__}",
        matrices=sum(isinstance(part, Linear) for part in exported.model.modules()),
        megabytes=file.path.stat().st_size / 1e6,
        embedder=OnnxEmbedder(bundle, model, normalize=True) if bare else None,
        batch_tokens=1024 if exported.head in ("masked_lm", *LANGUAGE_MODELS) else 8192,
    )


def _write_graphs(
    bundle: Bundle, exported: Exported, folder: Path, opset: int, int8: bool
) -> dict[str, OnnxFile]:
    """Write the graphs of a model, and open them; by name."""
    onnx, paths = needed("onnx"), {}
    graphs = write_graphs(exported, partial(GraphWriter, opset=opset, int8=int8))
    metadata = _metadata(bundle, exported, int8=int8)
    for name, graph in graphs.items():
        paths[name] = folder / f"{name}{'_quantized' if int8 else ''}.onnx"
        save_onnx(onnx, graph.model(metadata, __version__), paths[name])
    return {name: OnnxFile(path) for name, path in paths.items()}


def check_opset(opset: int) -> None:
    """Refuse an opset that lacks operators, or that nobody has checked.

    Raises:
        RunError: says which can be had.
    """
    if opset < OPSET:
        raise RunError(
            f"opset {opset}: has no LayerNormalization, which came with opset {OPSET}",
            f"Take --opset {OPSET}, which onnxruntime 1.12 and all later ones read.",
        )
    if opset > LAST_OPSET:
        raise RunError(
            f"opset {opset}: is not known here; the last one is {LAST_OPSET}",
            f"Leave --opset out: opset {OPSET} is read by all later versions, too.",
        )


def exported_model(bundle: Bundle) -> Exported:
    """Describe a model for `write_graphs`.

    Raises:
        RunError: adapters are not merged into it, its weights are in 8 bits, or it writes and its
            layers have different numbers of attention heads.
    """
    if is_int8(bundle.model):
        raise RunError(
            "the weights are in 8 bits already",
            "Export the model that they were rounded from; --int8 makes the export small.",
        )
    if adapters(bundle.model) or learned_rows(bundle.model):
        raise RunError(
            "the model has an adapter that is not merged into it",
            "Save it and export the folder: the weights that are saved have it merged in.",
        )
    head = "backbone" if bundle.task is None else bundle.task.head
    # Keys and values of earlier tokens have one number of heads, which config.json tells a reader.
    if head in LANGUAGE_MODELS and bundle.backbone.config.removed_heads:
        raise RunError(
            "attention heads were removed from this model, and what other engines keep of earlier "
            "tokens has the same number of heads in each layer",
            "Export the model that it was pruned from, or prune layers, neurons or tokens of it.",
        )
    # With one segment there is nothing to tell; RoBERTa's tokenizers tell none.
    segments = any(rule.ours == "embeddings.segments.weight" for rule in bundle.family.rules)
    segments = segments and getattr(bundle.backbone.config, "type_vocab_size", 0) > 1
    exported = Exported(bundle.model.eval(), head, segments)
    return replace(exported, pooling=_pooling(bundle)) if head == "backbone" else exported


def _pooling(bundle: Bundle) -> Pooling | None:
    """How `pretune embed` makes vectors of a bare model; None, with a note, if it cannot."""
    if bundle.backbone.reads_pairs or not bundle.backbone.has_attention:
        return None
    try:
        embedder = Embedder(bundle, device="cpu")
    except PretuneError as error:
        note(f"the export has no sentence_embedding: {error.message}")
        return None
    whole = embedder.size == bundle.backbone.config.size("hidden_size")
    size = None if whole else embedder.size
    return Pooling(embedder.pooling, embedder.normalize, size, embedder.max_length)


def _metadata(bundle: Bundle, exported: Exported, *, int8: bool) -> dict[str, str]:
    """Texts that go into the file: where it comes from, and how it computes."""
    kept = {
        "pretune": __version__,
        "model_type": bundle.family.model_type,
        "head": exported.head,
    }
    if int8:
        kept["int8"] = (
            "products: weights of 7 bits with a scale for each output, inputs of 8 bits with one "
            "scale that is found at run time; no sum of two products exceeds 16 bits, so that it "
            "is right on processors with and without VNNI; tables: 8 bits with a scale for each row"
        )
    return kept


def save_onnx(onnx: Any, model: Any, path: Path) -> None:
    """Write a model; weights of more than 2 GB go to a file beside it, `NAME.onnx_data`."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights <= LARGEST_FILE:
        onnx.save_model(model, str(path))
        return
    # Small constants stay: onnxruntime needs those of shapes before it opens the other file.
    beside = {"save_as_external_data": True, "location": f"{path.name}_data"}
    onnx.save_model(model, str(path), size_threshold=1024, **beside)


def refuse_different(largest: float, *, small: bool) -> None:
    """Refuse to keep an export that computes something else.

    In 8 bits outputs differ; what is refused is only what no rounding explains.

    Args:
        largest: the largest difference of two outputs, as a share of the largest output.
        small: whether the export is in 8 bits.
    """
    if largest <= (INT8_TOLERANCE if small else TOLERANCE):  # NaN is not
        return
    raise CheckpointError(
        f"the {'int8' if small else 'exported'} model does not compute the same: outputs differ by "
        f"up to {largest:.1e} of the largest (allowed: {INT8_TOLERANCE if small else TOLERANCE:g})",
        "Leave out --int8." if small else "This is a mistake of pretune; please report it.",
    )


def _write_beside(bundle: Bundle, exported: Exported, place: Path, program: str) -> None:
    """Write what a reader needs besides the graphs."""
    save_without_weights(bundle, place)
    write_json(place / "special_tokens_map.json", bundle.tokenizer.special)
    crf: Any = getattr(exported.model, "crf", None)
    if crf is not None and isinstance(bundle.task, Tagger):
        # A path's score: start + the emissions of its labels + transitions[from][to] + end. What is
        # not well-formed scores next to nothing, as JSON has no infinity.
        task = bundle.task
        field = well_formed(crf.weights.cpu(), task.labels, task.options.scheme)
        parts = {name: t.clamp(min=-1e9).tolist() for name, t in vars(field).items()}
        write_json(place / FOLDER / "crf.json", parts)
    (place / EXAMPLE).write_text(program, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write values as a JSON file."""
    text = json.dumps(values, ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
