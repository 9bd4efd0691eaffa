"""What a ladder leaves in its folder: a JSON file, a CSV file and a picture."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields
from pathlib import Path

from pretune.checkpoints.atomic_io import atomic_text
from pretune.errors import not_writable
from pretune.experiments.ladder import Ladder, RungResult
from pretune.render.charts import (
    COLOURS,
    can_draw,
    font_families,
    new_figure,
    write_png,
    write_words,
)
from pretune.render.escaping import one_line

#: Columns of the CSV file: all that is known of a rung but its folder.
CSV_COLUMNS = [field.name for field in fields(RungResult) if field.name != "folder"]


def ladder_csv(ladder: Ladder) -> str:
    """Write a ladder as CSV, a line for each rung."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([getattr(rung, name) for name in CSV_COLUMNS] for rung in ladder.rungs)
    return out.getvalue()


def write_ladder(ladder: Ladder, folder: Path) -> None:
    """Write `ladder.json`, `ladder.csv` and `ladder.png`; raises RunError if that fails."""
    text = json.dumps(ladder.to_dict(), ensure_ascii=False, indent=2) + "\n"
    for name, content in (("ladder.json", text), ("ladder.csv", ladder_csv(ladder))):
        try:
            atomic_text(folder / name, content)
        except OSError as error:
            raise not_writable(folder / name, "--out FOLDER", error) from None
    draw_ladder(ladder, folder / "ladder.png")


def draw_ladder(ladder: Ladder, path: Path) -> None:
    """Draw the bits per character as bars, from the oldest model to the newest."""
    rungs = ladder.rungs
    figure = new_figure(8, 0.55 * len(rungs) + 1.4)
    axes = figure.subplots()
    bits = [rung.bits_per_character for rung in rungs]
    places = range(len(rungs))
    # The best model has a colour of its own.
    colours = [COLOURS[2 if value == min(bits) else 0] for value in bits]
    axes.barh(places, bits, color=colours, height=0.7)
    axes.set_yticks(places, [rung.title for rung in rungs])
    axes.invert_yaxis()
    # Beside each bar stand its value and what the model cost; the axis leaves room for that.
    axes.set_xlim(0, 1.75 * max(bits))
    for place, rung in zip(places, rungs, strict=True):
        note = f"{rung.bits_per_character:.3f}   {short_count(rung.parameters)} parameters"
        note += f", {rung.seconds:,.0f} s" if rung.seconds >= 1 else ", < 1 s"
        axes.annotate(
            note, (rung.bits_per_character, place), (4, 0), textcoords="offset points", va="center"
        )
    write_words(axes.xaxis.label, "bits per character on text that was held back (less is better)")
    # A file name may hold characters that no font here has, and "$", which is no formula.
    name = one_line(Path(ladder.corpus).name)
    shown = f"{name}, " if can_draw(name) else ""
    title = axes.set_title(f"{shown}{ladder.level} tokens, {ladder.budget} each", fontsize=11)
    title.set_fontfamily(font_families())
    title.set_parse_math(False)
    axes.spines[["top", "right"]].set_visible(False)
    write_png(figure, path, "--out")


def short_count(count: int) -> str:
    """Format a count in its largest fitting unit: `850`, `14 k`, `1.3 M`."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return str(count)
