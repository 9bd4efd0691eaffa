"""Notebooks: whether a program runs in one, and what its results show there.

A result is in a low room of the house, how it looks in a high one. So a result only inherits
`Displayed`, which asks `render/notebook_views.py` when somebody wants to see it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pretune.errors import PretuneError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The module that knows how results look.
_VIEWS = "pretune.render.notebook_views"


class Displayed:
    """A result that a notebook shows as HTML, and that becomes a table or a chart."""

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """List the rows of `to_dataframe`, by the names of its columns."""
        raise NotImplementedError

    def to_dataframe(self) -> Any:
        """Make a pandas `DataFrame` of it."""
        pandas = _needed("pandas", "a data frame")
        return pandas.DataFrame([dict(row) for row in self.table_rows()])

    def plot(self) -> Figure:
        """Draw it as a matplotlib `Figure`, which a notebook shows and `savefig` writes.

        Raises:
            PretuneError: there is nothing to draw, or matplotlib is not installed.
        """
        _needed("matplotlib", "a chart")
        figure: Figure = import_module(_VIEWS).figure_of(self)
        if in_kernel():
            _show_figures()
        return figure

    def _repr_html_(self) -> str:
        """What a notebook shows; everything that comes from data is escaped."""
        html: str = import_module(_VIEWS).html_of(self)
        return html


def _needed(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise PretuneError(
            f"{what} needs the Python package {name}, which is not installed",
            f"Install it: pip install {name}",
        ) from None


def in_kernel() -> bool:
    """Whether IPython runs a kernel here, whose front end shows HTML and can change it in place."""
    return hasattr(_shell(), "kernel")


def _shell() -> Any:
    """IPython's shell; None elsewhere. IPython is not imported for this."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _show_figures() -> None:
    """Let the front end show figures that no screen of matplotlib's own has, as pictures."""
    tools = import_module("IPython.core.pylabtools")
    tools.select_figure_formats(_shell(), {"png"})


class LiveDisplay:
    """One display in a notebook, whose content is replaced.

    Args:
        content: what is shown, now and whenever `refresh` is called.
    """

    def __init__(self, content: Displayed) -> None:
        self._content = content
        self._handle: Any = None

    def refresh(self) -> None:
        """Show the content as it is now, in the place where it was shown first."""
        if self._handle is None:
            display = import_module("IPython.display").display
            self._handle = display(self._content, display_id=True)
        else:
            self._handle.update(self._content)
