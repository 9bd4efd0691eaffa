"""`pretune inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, print_result
from pretune.errors import PretuneError, note
from pretune.text.spoken_language import tr

if TYPE_CHECKING:
    from pretune.bundle.bundle import Bundle


@command(
    "inspect",
    "pretune inspect minilm",
    "pretune inspect runs/tickets --batch 64 --length 256 --json",
    "pretune inspect minilm --tokens 'unaffable films'",
    "pretune inspect minilm --kernels",
    "pretune inspect minilm --attention 'The cat sat on the mat.' --layer 2 --head 5 -o map.svg",
)
def inspect(
    source: Annotated[
        str,
        Argument(
            metavar="SOURCE",
            help="A model folder, a run folder, a Hub id, a GGUF file, minilm or smollm2.",
        ),
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
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            help="The picture for --attention: a .png, .svg or .html file. The last two keep the "
            "texts as texts.",
        ),
    ] = Path("attention.png"),
    lang: options.Lang = None,
    layer: Annotated[
        int | None, Option(help="Draw this layer only, counted from 0. Default: all.")
    ] = None,
    head: Annotated[
        int | None, Option(help="Draw this head only, counted from 0. Default: all.")
    ] = None,
    kernels: Annotated[
        bool,
        Option("--kernels", help="Time the kernels for its matrix products on this processor."),
    ] = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
) -> None:
    """Show a model's parts and costs, a text's tokens, an attention map, or kernels.

    Modules with their shapes, parameters, FLOPs, memory for inference and training, and the
    vocabulary come from config.json, which must fit the names and shapes of the weights; only
    --attention loads them.
    """
    if attention is None and (layer is not None or head is not None):
        raise PretuneError("--layer and --head choose what --attention draws", "Add it.")
    if attention is not None:
        from pretune.render.attention_maps import check_kind

        check_kind(output)
    from pretune.bundle.bundle import load, outline
    from pretune.inspection.inspect import (
        inspect_model,
        kernel_table,
        needed_tokenizer,
        token_spans,
    )
    from pretune.render.model_views import inspection_view, kernels_view, tokens_view

    # Of a text: its tokens, and the attention between them.
    shown: dict[str, Any] = {}
    views: list[Any] = []
    if tokens is not None:
        pieces = token_spans(needed_tokenizer(outline(source)), tokens)
        shown["tokens"] = [asdict(piece) for piece in pieces]
        views.append(tokens_view(pieces))
    if attention is not None:
        bundle = load(source, allow_pickle=allow_pickle)
        with options.page_language(lang):
            shown["attention"] = _attention(bundle, attention, output, layer, head)
        views.append(f"wrote {output}")
    if kernels:
        table = kernel_table(outline(source).model)
        shown["kernels"] = table.to_dict()
        views.append(kernels_view(table))
    # Without any of these, the model itself is shown.
    if not shown:
        inspection = inspect_model(outline(source), batch, length)
        shown, views = inspection.to_dict(), [inspection_view(inspection)]
    print_result(shown, *views, as_json=as_json)


def _attention(
    bundle: Bundle, text: str, output: Path, layer: int | None, head: int | None
) -> dict[str, Any]:
    from pretune.inspection.inspect import attention_of, chosen
    from pretune.render.attention_maps import draw_attention, without_signs, write_attention

    tokens, maps = attention_of(bundle, text)
    layers = chosen("layer", layer, maps.shape[0])
    heads = chosen("head", head, maps.shape[1])
    picked = maps[layers][:, heads]
    figure = draw_attention(picked, tokens, layers, heads)
    write_attention(figure, output, tr(f"Attention: {text}"))
    if output.suffix.lower() == ".png" and (lacking := without_signs(tokens)) is not None:
        note(lacking)
    return {"file": str(output), "tokens": tokens, "layers": layers, "heads": heads}
