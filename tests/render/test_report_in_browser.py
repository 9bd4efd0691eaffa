"""The report as a person opens it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pretune.render.report import ReportFacts, write_report
from tests.render.examined import facts
from tests.tasks.every_task import NASTY

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Opened:
    """A page in a browser, what it asked for, and what went wrong in it."""

    page: Any
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def column(self, name: str) -> list[str]:
        """The cells of a column that are shown."""
        header = self.page.locator("#head th", has_text=name).first
        at = header.evaluate("head => head.cellIndex") + 1
        return [str(t) for t in self.page.locator(f"#rows td:nth-child({at})").all_inner_texts()]


@contextmanager
def opened(made: ReportFacts, folder: Path) -> Iterator[Opened]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    write_report(made, folder / "report.html")
    with sync.sync_playwright() as play:
        browser = play.chromium.launch_persistent_context(
            folder / "profile", executable_path=str(CHROMIUM), args=FLAGS
        )
        found = Opened(browser.new_page())
        found.page.on("request", lambda request: found.asked.append(request.url))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("console", lambda m: found.errors.append(m.text))
        found.page.goto((folder / "report.html").as_uri())
        yield found
        assert found.page.evaluate("window.broken") is None
        assert found.errors == []
        own = ("data:", (folder / "report.html").as_uri())
        assert [url for url in found.asked if not url.startswith(own)] == []
        browser.close()


def test_it_sorts_filters_and_asks_for_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    with opened(facts("classify", tiny_folder, tmp_path, 120), tmp_path) as found:
        page = found.page
        shown = [float(text) for text in found.column("loss")]
        assert len(shown) == 50
        assert shown == sorted(shown, reverse=True)
        page.locator("#head button", has_text="loss").click()
        again = [float(text) for text in found.column("loss")]
        assert again == sorted(again)
        assert again != shown
        page.locator("#head button", has_text="line").click()
        assert found.column("line")[:2] == ["121", "120"]
        page.click("#on")
        assert found.column("line")[0] == "71"
        page.fill("#filter", "</script>")
        assert found.column("text") == [NASTY]
        page.fill("#filter", "")
        page.check("#wrong")
        assert set(found.column("right")) == {"no"}
        # Every picture could be drawn, also those with labels of the data.
        widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) >= 4
        assert min(widths) > 100


def test_kinds_of_mistakes_can_be_chosen(tmp_path: Path, tiny_folder: Path) -> None:
    with opened(facts("multilabel", tiny_folder, tmp_path, lines=()), tmp_path) as found:
        kinds = found.page.locator("#kind option").all_inner_texts()
        assert kinds == ["all", "missed", "spurious"]
        before = len(found.column("mistakes"))
        found.page.select_option("#kind", "missed")
        after = found.column("mistakes")
        assert 0 < len(after) < before
        assert all("missed: " in text for text in after)


def test_a_language_model_has_no_mistakes_to_choose(tmp_path: Path, tiny_folder: Path) -> None:
    with opened(facts("causal_lm", tiny_folder, tmp_path, lines=()), tmp_path) as found:
        assert not found.page.is_visible("#wrong")
        assert not found.page.is_visible("#kind")
        assert float(found.column("perplexity")[0]) > 1


def test_it_is_usable_with_20000_examples(tmp_path: Path, tiny_folder: Path) -> None:
    made = facts("classify", tiny_folder, tmp_path, 20, ())
    many = replace(made.examined, examples=made.examined.examples * 1000)
    with opened(replace(made, examined=many), tmp_path) as found:
        assert found.page.locator("#rows tr").count() == 50
        assert "20,000 examples, page 1 of 400" in found.page.inner_text("#count")
        found.page.fill("#filter", "<script>")
        assert "1,000 examples, page 1 of 20" in found.page.inner_text("#count")
