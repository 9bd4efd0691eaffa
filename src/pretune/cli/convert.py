"""`pretune convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result
from pretune.text.terminal import hanging


@command(
    "convert",
    "pretune convert uncased_L-12_H-768_A-12 bert-base    (Google's TensorFlow release)",
    "pretune convert old-model new-model --allow-pickle   (pytorch_model.bin)",
    "pretune convert runs/tickets small --dtype bfloat16   (half the size)",
)
def convert(
    source: Annotated[str, Argument(help="A model folder, a run folder or a Hub id.")],
    folder: Annotated[Path, Argument(help="The folder to write; must not exist yet.")],
    dtype: Annotated[
        str, Option(help="float32, float16, bfloat16, or auto: as it is stored.")
    ] = "float32",
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Convert a checkpoint to config.json, model.safetensors and tokenizer.json."""
    from pretune.bundle.convert import convert as convert_checkpoint

    report = convert_checkpoint(source, folder, dtype=dtype, allow_pickle=allow_pickle)
    last = f"wrote {folder}; use it as model.from={folder}"
    print_result({}, hanging(report), last, as_json=False, saved=True)
