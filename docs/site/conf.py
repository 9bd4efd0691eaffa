"""Sphinx's settings for one language of the site; docs/site/build.py calls Sphinx with them."""

import builtins
import os
import re
from itertools import pairwise
from typing import Any

from sphinx.domains.python import PythonDomain
from sphinx.pycode import ModuleAnalyzer
from sphinx.search.zh import SearchChinese
from typing_extensions import override

LANGUAGE = os.environ["PRETUNE_SITE_LANGUAGE"]  # en or zh

project = "pretune"
author = "the authors of pretune"
copyright = author  # noqa: A001
language = {"en": "en", "zh": "zh_CN"}[LANGUAGE]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "pretune"
html_show_copyright = html_show_sourcelink = html_copy_source = False
myst_heading_anchors = 4
# Formulas are written as text: MathJax would be loaded from a server, and the site works without.
myst_enable_extensions = []
# `out:` leads out of this language's part of the site; build.py writes such links.
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    "out": {"url": "{{path}}#{{fragment}}"},
}
# Notebooks are run by the tests; here their outputs are shown as they are.
nb_execution_mode = "off"
# Examples in the docs are in no language that a lexer knows (commands with their output).
suppress_warnings = ["misc.highlighting_failure", "myst.header", "mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Without "undoc-members": even False turns it on.
autodoc_default_options = {"members": True, "show-inheritance": True}
add_module_names = False
# Attributes are a list within their class: as objects of their own they would be there twice.
napoleon_use_ivar = True
# Docstrings put code between single backticks.
default_role = "code"


class ChineseByPairs(SearchChinese):
    """Searches in Chinese by characters and pairs of neighbours, for which no dictionary is needed.

    Sphinx itself finds no Chinese word where jieba is not installed.
    """

    # The browser looks for the stemmer under this name, and the one for Chinese pages is English:
    # with Sphinx's own name for it nothing is found at all.
    language_name = "English"
    # The same in the browser, where a longer word is all of its pairs.
    js_splitter_code = r"""
var splitQuery = (query) =>
  (query.match(/\p{Script=Han}+|(?:(?!\p{Script=Han})[\p{Letter}\p{Number}_])+/gu) || []).flatMap(
    (part) => {
      const signs = [...part];
      return signs.length > 2 && /\p{Script=Han}/u.test(part)
        ? signs.slice(1).map((sign, place) => signs[place] + sign)
        : [part];
    },
  );
"""

    @override
    def split(self, input: str) -> list[str]:
        latin = self.latin1_letters.findall(input)
        self.latin_terms.update(latin)
        runs = re.findall("[\u3400-\u9fff]+", input)
        pairs = [a + b for run in runs for a, b in pairwise(run)]
        return [*latin, *"".join(runs), *pairs]

    @override
    def word_filter(self, word: str) -> bool:
        return len(word) > 1 or not word.isascii()


class QuickPythonDomain(PythonDomain):
    """Looks for a name among those that can match.

    Sphinx goes through all names of the reference for each `int` and `Tensor` of each signature,
    which took three quarters of the time that the site takes.
    """

    _last_parts: frozenset[str] = frozenset()
    _count = -1

    @override
    def find_obj(
        self,
        env: Any,
        modname: str,
        classname: str,
        name: str,
        type: str | None,
        searchmode: int = 0,
    ) -> list[tuple[str, Any]]:
        # All names are known once they are looked for.
        if self._count != len(self.objects):
            self._count = len(self.objects)
            self._last_parts = frozenset(own.rpartition(".")[2] for own in self.objects)
        # `type` in a signature is Python's, whatever has a field of that name.
        if hasattr(builtins, name):
            return []
        if name.removesuffix("()").rpartition(".")[2] not in self._last_parts:
            return []
        return super().find_obj(env, modname, classname, name, type, searchmode)


_analyze = ModuleAnalyzer.analyze


def _without_overloads(analyzer: ModuleAnalyzer) -> None:
    """Let a function have one signature: its overloads differ in a type or two of twenty lines."""
    _analyze(analyzer)
    analyzer.overloads = {}


def _other_language(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Put a link to the same page in the other language above a page, whatever folder it is in."""
    up = "../" * (pagename.count("/") + 1)
    other, name = {"en": ("zh", "中文"), "zh": ("en", "English")}[LANGUAGE]
    # The reference is in English alone.
    page = "index" if pagename.startswith(("api/", "_modules/", "py-modindex")) else pagename
    context["theme_announcement"] = f'<a href="{up}{other}/{page}.html">{name}</a>'


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.add_search_language(ChineseByPairs)
    app.add_domain(QuickPythonDomain, override=True)
    ModuleAnalyzer.analyze = _without_overloads  # type: ignore[method-assign]
    app.connect("html-page-context", _other_language)
