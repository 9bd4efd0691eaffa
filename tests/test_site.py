"""The documentation site: every page is in it, every link within it leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.site_tools import site_tool

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def builder() -> Any:
    return site_tool("build")


def test_every_page_is_there_and_no_link_is_broken(builder: Any, tmp_path: Path) -> None:
    site = tmp_path / "site"
    assert builder.build(site, api=False) == []
    for language, folder in (("en", "docs"), ("zh", "docs/zh-CN")):
        pages = {path.stem for path in (ROOT / folder).glob("*.md")}
        assert {path.stem for path in (site / language).glob("*.html")} >= {"index", *pages}
        assert (site / language / "searchindex.js").stat().st_size > 10_000
        # Nothing is loaded from elsewhere: the site works without a network.
        loads = re.compile(r'<(?:script|link|img)\b[^>]*(?:src|href)="https?://')
        all_pages = sorted((site / language).rglob("*.html"))
        assert [p for p in all_pages if loads.search(p.read_text(encoding="utf-8"))] == []
        # The search calls a stemmer that is there.
        script = (site / language / "_static/language_data.js").read_text(encoding="utf-8")
        (stemmer,) = re.findall(r"window\.Stemmer = (\w+);", script)
        assert re.search(rf"\b(?:var|const|class) {stemmer}\b", script)
    # A link to a notebook leads to its page, and one to code to the name in it.
    page = (site / "en/alignment.html").read_text(encoding="utf-8")
    assert 'href="walkthroughs/align.html"' in page
    page = (site / "source/src/pretune/models/layers.py.html").read_text(encoding="utf-8")
    assert 'id="SelfAttention"' in page


def test_the_reference_shows_one_signature_of_an_overloaded_function(tmp_path: Path) -> None:
    (tmp_path / "index.rst").write_text("A\n=\n\n.. autofunction:: pretune.load\n")
    words = ["-q", "-c", str(ROOT / "docs/site"), str(tmp_path), str(tmp_path / "out")]
    env = {**os.environ, "PRETUNE_SITE_LANGUAGE": "en"}
    subprocess.run([sys.executable, "-m", "sphinx", *words], env=env, check=True, timeout=300)
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert page.count('<dt class="sig ') == 1
    assert "attention_dropout" in page


def test_a_broken_link_is_noticed(builder: Any, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a> <a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<p id="y">')
    assert builder.broken_links(tmp_path) == ["a.html: b.html#x", "a.html: c.html"]
