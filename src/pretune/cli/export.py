"""`pretune export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result, progress_bar
from pretune.text.terminal import hanging

_FORMATS = ("onnx", "gguf")


@command(
    "export",
    "pretune export runs/tickets --to onnx",
    "pretune export runs/tickets --to onnx --int8 --data dev.tsv   (also in 8 bits, if as good)",
    "pretune export minilm --to onnx   (vectors of sentences)",
    "pretune export runs/gpt --to gguf   (a GPT-2, for llama.cpp)",
)
def export(
    run: Annotated[str, Argument(metavar="RUN", help="A run folder, a model folder or a Hub id.")],
    to: Annotated[str, Option(help="The format: onnx, or gguf for llama.cpp.")],
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="What to write. Default: RUN-onnx, or RUN.gguf."),
    ] = None,
    int8: Annotated[
        bool, Option("--int8", help="Also write it in 8 bits: a quarter of the size.")
    ] = False,
    data: Annotated[
        str | None,
        Option(help="A labelled file, or a Hub dataset: keep int8 only if it does well there."),
    ] = None,
    max_loss: Annotated[
        float, Option(help="Points of the task's metric, of 100, that int8 may lose.")
    ] = 0.5,
    min_agreement: Annotated[
        float, Option(help="Percent of the answers that int8 must give as float32 does.")
    ] = 98.5,
    columns: options.Columns = None,
    opset: Annotated[
        int | None, Option(help="Version of ONNX's operators, from 17 on. Default: 17.")
    ] = None,
    allow_pickle: options.AllowPickle = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Write a model for other engines: ONNX, or GGUF.

    What was written is opened by the engine and compared with the model before it is kept.
    """
    from pretune.errors import RunError, did_you_mean
    from pretune.export.packages import needed

    needed("onnx")  # before modules that are made of it are imported
    from pretune.export.gguf_file import export_gguf
    from pretune.export.onnx_files import export_onnx
    from pretune.export.onnx_graph import OPSET
    from pretune.export.quality_gate import GateLimits
    from pretune.render.result_views import onnx_view

    if to not in _FORMATS:
        raise RunError(f"no format is called '{to}'", did_you_mean(to, _FORMATS))
    name = run.rstrip("/")
    if to == "gguf":
        if int8 or data is not None or opset is not None:
            raise RunError(
                "--int8, --data and --opset are for --to onnx",
                "Leave them out; llama.cpp's own llama-quantize makes a GGUF file smaller.",
            )
        file = export_gguf(run, output or Path(f"{name}.gguf"), allow_pickle=allow_pickle)
        last = f"wrote {file.file}: {file.tensors} tensors, {file.size / 1e6:.1f} MB"
        print_result(file.to_dict(), hanging(last), as_json=as_json, saved=True)
        return
    folder = output or Path(f"{name}-onnx")
    with progress_bar("checking", shown=not quiet and not as_json) as progress:
        result = export_onnx(
            run,
            folder,
            opset=OPSET if opset is None else opset,
            int8=int8,
            data=data,
            columns=options.column_pairs(columns),
            limits=GateLimits(max_loss, min_agreement),
            allow_pickle=allow_pickle,
            progress=progress,
        )
    last = f"wrote {folder}; {folder}/example.py runs it by onnxruntime alone:"
    if int8 and data is None:
        last = f"int8 was not measured on labelled data (--data FILE)\n{last}"
    elif result.gate is not None:
        last = f"int8 passes: {result.gate}\n{last}"
    views = (onnx_view(result), hanging(last), "", result.example)
    print_result(result.to_dict(), *views, as_json=as_json, saved=True)
