"""`pretune inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, to_stdout
from pretune.errors import PretuneError

if TYPE_CHECKING:
    from rich.console import Console

    from pretune.bundle.bundle import Bundle


@command(
    "inspect",
    "pretune inspect minilm",
    "pretune inspect runs/tickets --batch 64 --length 256 --json",
    "pretune inspect minilm --tokens 'unaffable films'",
    "pretune inspect minilm --attention 'The cat sat on the mat.' --layer 2 --head 5 -o map.png",
)
def inspect(
    source: Annotated[
        str, Argument(metavar="SOURCE", help="A model folder, a run folder, a Hub id, or minilm.")
    ],
    batch: Annotated[int, Option(min=1, help="Sequences in a batch, for the memory.")] = 32,
    length: Annotated[
        int | None,
        Option(
            min=1,
            help="Tokens of a sequence, for memory and FLOPs. Default: 128, or all positions.",
        ),
    ] = None,
    tokens: Annotated[
        str | None, Option(metavar="TEXT", help="Show the tokens of this text.")
    ] = None,
    attention: Annotated[
        str | None,
        Option(metavar="TEXT", help="Draw the attention between the tokens of this text."),
    ] = None,
    output: Annotated[Path, Option("--output", "-o", help="The picture for --attention.")] = Path(
        "attention.png"
    ),
    layer: Annotated[
        int | None, Option(help="Draw this layer only, counted from 0. Default: all.")
    ] = None,
    head: Annotated[
        int | None, Option(help="Draw this head only, counted from 0. Default: all.")
    ] = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Show a model's modules and costs, the tokens of a text, or an attention map.

    Modules with their shapes, parameters, FLOPs, memory for inference and training, and the
    vocabulary come from config.json: only --attention loads the weights.
    """
    if attention is None and (layer is not None or head is not None):
        raise PretuneError("--layer and --head choose what --attention draws", "Add it.")
    out = to_stdout()
    shown: dict[str, Any] = {}
    if tokens is not None:
        shown["tokens"] = _tokens(source, tokens, None if as_json else out)
    if attention is not None:
        from pretune.bundle.bundle import load

        shown["attention"] = _attention(
            load(source, allow_pickle=allow_pickle), attention, output, layer, head
        )
        if not as_json:
            out.print(f"wrote {output}", soft_wrap=True)
    if not shown:
        shown = _model(source, batch, length, None if as_json else out)
    if as_json:
        out.print_json(data=shown)


def _model(source: str, batch: int, length: int | None, out: Console | None) -> dict[str, Any]:
    from pretune.bundle.bundle import outline
    from pretune.inspection.inspect import inspect_model
    from pretune.render.model_views import inspection_view

    inspection = inspect_model(outline(source), batch, length)
    if out is not None:
        out.print(inspection_view(inspection))
    return inspection.to_dict()


def _tokens(source: str, text: str, out: Console | None) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from pretune.bundle.bundle import outline
    from pretune.inspection.inspect import needed_tokenizer, token_spans
    from pretune.render.model_views import tokens_view

    pieces = token_spans(needed_tokenizer(outline(source)), text)
    if out is not None:
        out.print(tokens_view(pieces))
    return [asdict(piece) for piece in pieces]


def _attention(
    bundle: Bundle, text: str, output: Path, layer: int | None, head: int | None
) -> dict[str, Any]:
    from pretune.inspection.inspect import attention_of, chosen
    from pretune.render.attention_maps import draw_attention

    tokens, maps = attention_of(bundle, text)
    layers = chosen("layer", layer, maps.shape[0])
    heads = chosen("head", head, maps.shape[1])
    picked = maps[layers][:, heads]
    draw_attention(picked, tokens, layers, heads, output)
    return {"file": str(output), "tokens": tokens, "layers": layers, "heads": heads}
