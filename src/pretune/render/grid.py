"""A table made once and shown three ways: in a terminal, on an HTML page, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.render.escaping import for_html, for_markdown
from pretune.text.terminal import in_line

#: Cells of at most this many characters are never broken over two lines.
SHORT = 24


@dataclass(frozen=True)
class Styled:
    """A cell with a style in the terminal, such as `bold` or `red`; elsewhere plain text."""

    text: object
    style: str

    def __str__(self) -> str:
        return str(self.text)


@dataclass(frozen=True)
class Grid:
    """A table. Its cells may hold any text: each way of showing it escapes them."""

    header: Sequence[object]  # if all are empty, the terminal shows no header line
    rows: Sequence[Sequence[object]]
    caption: str = ""
    numbers: Sequence[int] | None = None  # columns aligned right, from 0; None: all but the first
    footer: Sequence[Sequence[object]] = ()
    ruled: bool = False  # whether the terminal draws a line between rows
    whole: Sequence[int] = ()  # columns, from 0, that the terminal never breaks over lines

    @property
    def _right(self) -> Sequence[int]:
        return range(1, len(self.header)) if self.numbers is None else self.numbers

    @property
    def _all_rows(self) -> list[Sequence[object]]:
        return [*self.rows, *self.footer]

    def terminal(self) -> RenderableType:
        """Lay the table out for a terminal with rich."""
        table = Table(pad_edge=False, show_lines=self.ruled, show_header=any(map(str, self.header)))
        for column, name in enumerate(self.header):
            right = column in self._right
            longest = max((len(str(row[column])) for row in self._all_rows), default=0)
            # A number is never broken; a long text is, where the column ends.
            number = right and longest <= SHORT
            table.add_column(
                _text(name),
                justify="right" if right else "left",
                overflow="ellipsis" if number else "fold",
                no_wrap=number or column in self.whole,
            )
        for row in self.rows:
            table.add_row(*map(_text, row))
        if self.footer:
            table.add_section()
        for row in self.footer:
            table.add_row(*map(_text, row))
        return titled(self.caption, table) if self.caption else table

    def html(self) -> str:
        """Write the table as HTML."""
        caption = f"<caption>{for_html(self.caption)}</caption>" if self.caption else ""
        # <bdi> keeps right-to-left text in a cell from reordering its neighbours.
        head = "".join(
            f'<th scope="col"{self._html_class(i)}>{for_html(name)}</th>'
            for i, name in enumerate(self.header)
        )
        body = "\n".join(
            "<tr>"
            + "".join(
                f"<td{self._html_class(i, cell)}><bdi>{for_html(cell)}</bdi></td>"
                for i, cell in enumerate(row)
            )
            + "</tr>"
            for row in self._all_rows
        )
        return (
            f'<div class="table"><table>{caption}\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody></table></div>"
        )

    def _html_class(self, column: int, cell: object = "") -> str:
        if column in self._right:
            return ' class="number"'
        return "" if len(str(cell)) > SHORT else ' class="short"'

    def markdown(self) -> str:
        """Write the table as GitHub's Markdown, without the caption."""
        rules = ["---:" if i in self._right else ":---" for i in range(len(self.header))]
        lines = [[for_markdown(cell) for cell in row] for row in (self.header, *self._all_rows)]
        head, *body = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join([head, "|" + "|".join(rules) + "|", *body])


def _text(cell: object) -> Text:
    style = cell.style if isinstance(cell, Styled) else ""
    return Text(in_line(cell), style)


def titled(title: str, *parts: RenderableType) -> Group:
    """Put a bold title above some parts, for the terminal."""
    return Group(Text(in_line(title), "bold"), *parts)
