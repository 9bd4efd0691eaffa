"""`pretune export`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result, progress_bar
from pretune.text.terminal import hanging

if TYPE_CHECKING:
    from pretune.bundle.bundle import Bundle
    from pretune.export.onnx_files import EngineExport

#: The formats, and what the name of an export ends in.
_FORMATS = {"onnx": "-onnx", "gguf": ".gguf", "ctranslate2": "-ctranslate2"}


@command(
    "export",
    "pretune export runs/tickets --to onnx",
    "pretune export runs/tickets --to onnx --int8 --data dev.tsv   (also in 8 bits, if as good)",
    "pretune export minilm --to onnx   (vectors of sentences)",
    "pretune export runs/gpt --to gguf   (a GPT-2, for llama.cpp)",
    "pretune export runs/de-en --to ctranslate2 --int8 --data dev.tsv   (a translator)",
)
def export(
    context: typer.Context,
    run: Annotated[str, Argument(metavar="RUN", help="A run folder, a model folder or a Hub id.")],
    to: Annotated[str, Option(help="The format: onnx, gguf for llama.cpp, or ctranslate2.")],
    output: Annotated[
        Path | None,
        Option(
            "--output",
            "-o",
            help="What to write. Default: RUN-onnx, RUN.gguf or RUN-ctranslate2.",
        ),
    ] = None,
    int8: Annotated[
        bool, Option("--int8", help="Write it in 8 bits, a quarter of the size; ONNX: also.")
    ] = False,
    data: Annotated[
        str | None,
        Option(
            help="A labelled file, or a Hub dataset: keep int8 only if it does well there. For a "
            "model without a task, texts."
        ),
    ] = None,
    max_loss: Annotated[
        float, Option(help="Points of the task's metric, of 100, that int8 may lose.")
    ] = 0.5,
    min_agreement: Annotated[
        float, Option(help="Percent of the answers that int8 must give as float32 does.")
    ] = 98.5,
    force: Annotated[
        bool, Option("--force", help="Write int8 even if it loses more; the export says so.")
    ] = False,
    limit: options.Limit = None,
    columns: options.Columns = None,
    encoding: options.Encoding = "utf-8",
    quoting: options.Quoting = "auto",
    max_chars: options.MaxChars = None,
    opset: Annotated[
        int | None, Option(help="Version of ONNX's operators, from 17 on. Default: 17.")
    ] = None,
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a model for other engines: ONNX, GGUF or CTranslate2.

    What was written is opened by the engine and compared with the model before it is kept.
    """
    from pretune.bundle.bundle import load
    from pretune.errors import RunError, did_you_mean
    from pretune.export.output_folder import check_new_folder
    from pretune.export.packages import needed
    from pretune.export.quality_gate import GateLimits

    needed("onnx")  # before modules that are made of it are imported
    if to not in _FORMATS:
        raise RunError(f"no format is called '{to}'", did_you_mean(to, _FORMATS))
    # Mistakes in the command line are reported before the model is loaded.
    _check_options(context, to)
    limits = GateLimits(max_loss, min_agreement)
    target = output or Path(run.rstrip("/") + _FORMATS[to])
    check_new_folder(target, "file" if to == "gguf" else "folder")
    if to == "gguf":
        from pretune.export.gguf_file import export_gguf

        file = export_gguf(run, target, allow_pickle=allow_pickle)
        last = f"wrote {file.file}: {file.tensors} tensors, {file.size / 1e6:.1f} MB"
        print_result(file.to_dict(), hanging(last), as_json=as_json, saved=True)
        return
    bundle = load(run, allow_pickle=allow_pickle)
    how: dict[str, Any] = {"int8": int8, "limits": limits, "force": force}
    if opset is not None:
        how["opset"] = opset
    if data is not None:
        how["data"] = options.examples_to_judge(context, run, bundle, data)
    shown = not quiet and not as_json
    with progress_bar("checking", shown=shown) as progress, _shown_refusal(as_json=as_json):
        result = _write(to, bundle, target, progress=progress, **how)
    _show(to, result, int8=int8, as_json=as_json)


def _check_options(context: typer.Context, to: str) -> None:
    """Refuse options that mean nothing for a format, or without others."""
    from pretune.errors import RunError

    given = {
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or "")) is not None
        and source.name == "COMMANDLINE"
    }
    if to == "gguf" and given & {"--int8", "--data"}:
        raise RunError(
            "--int8 and --data are for --to onnx and --to ctranslate2",
            "Leave them out; llama.cpp's own llama-quantize makes a GGUF file smaller.",
        )
    if to != "onnx" and "--opset" in given:
        raise RunError("--opset is for --to onnx", "Leave it out.")
    about = ("--max-loss", "--min-agreement", "--force", "--limit")
    for name in (*about, "--column", "--encoding", "--quoting", "--max-chars"):
        if name in given and "--data" not in given:
            raise RunError(
                f"{name} is about --data, and there is none", f"Leave {name} out, or name --data."
            )
    if "--data" in given and "--int8" not in given:
        raise RunError("--data measures what --int8 loses", "Add --int8, or leave it out.")


@contextmanager
def _shown_refusal(*, as_json: bool) -> Iterator[None]:
    """Context that shows the table of a gate that refuses, before the error."""
    from pretune.export.quality_gate import GateError
    from pretune.render.smaller_views import gate_view

    try:
        yield
    except GateError as error:
        result = error.result
        print_result(
            result.to_dict(), gate_view(result), "nothing was written", as_json=as_json, saved=True
        )
        raise


def _write(to: str, bundle: Bundle, target: Path, **how: Any) -> EngineExport:
    if to == "onnx":
        from pretune.export.onnx_files import export_onnx

        return export_onnx(bundle, target, **how)
    from pretune.export.ctranslate2_folder import export_ctranslate2

    return export_ctranslate2(bundle, target, **how)


def _show(to: str, result: EngineExport, *, int8: bool, as_json: bool) -> None:
    """Print what was written, and the program that runs it."""
    from pretune.render.smaller_views import export_view, gate_view

    views: list[Any] = [export_view(result)]
    if result.gate is not None:
        views.append(gate_view(result.gate))
    elif int8:
        views.append("int8 was not measured on labelled data (--data FILE)")
    engine = {"onnx": "onnxruntime", "ctranslate2": "CTranslate2"}[to]
    last = f"wrote {result.folder}; {result.folder}/example.py runs it by {engine} alone:"
    views += [hanging(last), "", result.example]
    print_result(result.to_dict(), *views, as_json=as_json, saved=True)
