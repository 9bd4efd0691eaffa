"""A ladder for people: a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.checkpoints.atomic_io import atomic_text
from pretune.experiments.ladder import Ladder, not_writable
from pretune.render.charts import COLOURS, can_draw, font_families, new_figure, write_png

COLUMNS = (
    "name",
    "title",
    "parameters",
    "seconds",
    "updates",
    "tokens",
    "bits_per_character",
    "perplexity",
    "sample",
)


def ladder_view(ladder: Ladder) -> RenderableType:
    """The rungs for the terminal, from the oldest to the newest; the best in green."""
    table = Table(pad_edge=False)
    table.add_column("model", overflow="fold")
    for name in ("parameters", "training, s", "bits/character", "perplexity/token"):
        table.add_column(name, justify="right", no_wrap=True)
    best = min(rung.bits_per_character for rung in ladder.rungs)
    for rung in ladder.rungs:
        table.add_row(
            Text(rung.title),
            f"{rung.parameters:,}",
            f"{rung.seconds:,.1f}",
            Text(
                f"{rung.bits_per_character:.3f}",
                "green" if rung.bits_per_character == best else "",
            ),
            f"{rung.perplexity:,.2f}",
        )
    title = (
        f"{ladder.corpus}: {ladder.characters:,} characters to learn from, {ladder.held_back:,} "
        f"held back; tokens: {ladder.level} ({ladder.vocabulary:,}); {ladder.budget} each"
    )
    samples = Table.grid(padding=(0, 2))
    for rung in ladder.rungs:
        samples.add_row(Text(rung.name, "dim"), Text(one_line(rung.sample)))
    start = f"How they go on from {one_line(ladder.prompt)!r}:"
    return Group(Text(title, "bold"), table, Text(start, "bold"), samples)


def one_line(text: str) -> str:
    """Ends of lines as a sign."""
    return " ".join(text.replace("\n", "⏎").split())


def ladder_csv(ladder: Ladder) -> str:
    """A line for each rung, under the names of `RungResult`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(rung, name) for name in COLUMNS] for rung in ladder.rungs)
    return out.getvalue()


def write_ladder(ladder: Ladder, folder: Path) -> None:
    """Write `ladder.json`, `ladder.csv` and `ladder.png`.

    Raises:
        RunError: one cannot be written.
    """
    text = json.dumps(ladder.to_dict(), ensure_ascii=False, indent=2) + "\n"
    for name, content in (("ladder.json", text), ("ladder.csv", ladder_csv(ladder))):
        try:
            atomic_text(folder / name, content)
        except OSError as error:
            raise not_writable(folder / name, error) from None
    draw_ladder(ladder, folder / "ladder.png")


def draw_ladder(ladder: Ladder, path: Path) -> None:
    """Draw the bits for each character as bars, from the oldest model to the newest.

    Args:
        ladder: to draw.
        path: the PNG to write.

    Raises:
        RunError: the file cannot be written.
    """
    rungs = ladder.rungs
    figure = new_figure(8, 0.55 * len(rungs) + 1.4)
    axes = figure.subplots()
    bits = [rung.bits_per_character for rung in rungs]
    best = min(bits)
    places = range(len(rungs))
    colours = [COLOURS[2 if value == best else 0] for value in bits]
    axes.barh(places, bits, color=colours, height=0.7)
    axes.set_yticks(places, [rung.title for rung in rungs])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.75 * max(bits))  # room for what is written beside the bars
    for place, rung in zip(places, rungs, strict=True):
        note = f"{rung.bits_per_character:.3f}   {short(rung.parameters)} parameters"
        note += f", {rung.seconds:,.0f} s" if rung.seconds >= 1 else ", < 1 s"
        axes.annotate(
            note, (rung.bits_per_character, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_xlabel("bits per character on text that was held back (less is better)")
    name = one_line(Path(ladder.corpus).name)
    shown = f"{name}, " if can_draw(name) else ""
    title = axes.set_title(f"{shown}{ladder.level} tokens, {ladder.budget} each", fontsize=11)
    title.set_fontfamily(font_families())
    title.set_parse_math(False)
    axes.spines[["top", "right"]].set_visible(False)
    write_png(figure, path, "--out")


def short(count: int) -> str:
    """`850`, `14 k`, `1.3 M`."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return str(count)
