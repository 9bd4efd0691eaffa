"""The report as a person opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.examined import NASTY, built

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def test_a_report_sorts_filters_and_asks_for_nothing(tmp_path: Path, tiny_folder: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    path = tmp_path / "report.html"
    path.write_text(built(tiny_folder).html(), encoding="utf-8")
    asked: list[str] = []
    errors: list[str] = []
    with sync.sync_playwright() as play:
        browser = play.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=str(CHROMIUM), args=FLAGS
        )
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(path.as_uri())
        losses = page.locator("#rows tr td:nth-child(2)")
        shown = [float(text) for text in losses.all_inner_texts()]
        assert len(shown) == 50
        assert shown == sorted(shown, reverse=True)
        page.locator("#head button").nth(1).click()
        again = [float(text) for text in losses.all_inner_texts()]
        assert again == sorted(again)
        assert again != shown
        page.fill("#filter", "</script>")
        assert page.locator("#rows tr").count() == 1
        assert NASTY in page.locator("#rows").inner_text()
        page.fill("#filter", "")
        page.check("#wrong")
        right = page.locator("#head th", has_text="right")
        column = right.evaluate("head => head.cellIndex") + 1
        cells = page.locator(f"#rows tr td:nth-child({column})").all_inner_texts()
        assert set(cells) == {"no"}
        assert page.evaluate("window.broken") is None
        browser.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
