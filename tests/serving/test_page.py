"""The page in a browser: what people see of each task, and what no text of others can do to it."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from pretune.bundle.bundle import Bundle
from pretune.decoding.decoding import Decoding
from pretune.serving.jobs import Piece, Served
from pretune.serving.options import ServeOptions
from tests.render.test_report_in_browser import CHROMIUM, FLAGS
from tests.serving.in_process import InProcess
from tests.serving.live_server import LiveServer, wait_until
from tests.tasks.every_task import NASTY

PAGE = files("pretune.serving.page")
SCRIPTS = {file.name: file.read_text() for file in PAGE.iterdir() if file.name.endswith(".js")}
#: Models that write their answers: the column that they read, what they tell, and their beams.
WRITERS = [("translate", "source", "translation", 4), ("summarize", "document", "summary", 2)]
CARD = f"""---
license: mit
---
# About *it*

Plain {NASTY} and `{NASTY}` and **<b>strong**, see [the site](https://example.org/a) or
[not this](javascript:window.broken=true) ![nor this](http://127.0.0.1:9/x.png).

| name | value |
|---|---|
| <i>F1 | 0.9 |

- one
- two

```
<script>window.broken = true</script>
```
"""


class PageService(InProcess):
    """A service that also explains, has a card, and writes for ever where it is asked to."""

    def __init__(self, bundles: dict[str, Bundle]) -> None:
        super().__init__(bundles)
        self.prompts: list[Any] = []

    @override
    def models(self) -> list[Served]:
        return [self.model(name) for name in self._held]

    @override
    def model(self, name: str | None) -> Served:
        served = super().model(name or "bare")
        more = {"explain"} if served.task == "classify" else set()
        beams = {"translate": 4, "summarize": 2}.get(served.task or "", 1)
        abilities = served.abilities | more
        return replace(served, abilities=abilities, card=CARD, max_candidates=beams)

    @override
    async def explain(
        self, model: str | None, inputs: list[Any], *, attention: bool = False
    ) -> list[dict[str, Any]]:
        maps = [[[0.25, 0.75], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]]
        shown = {"tokens": ["<i>x", "##y"], "texts": [" <i>x", "y"], "attributions": [0.5, -0.25]}
        sums = {"value": -0.5, "baseline": -0.75}
        return [{"answer": {}, **shown, **sums, "attention": maps if attention else None}]

    @override
    async def predict(
        self,
        model: str | None,
        inputs: list[Any],
        *,
        top_k: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        answers = await super().predict(model, inputs, top_k=top_k, options=options)
        if (count := (options or {}).get("candidates")) is not None:
            for answer in answers:
                others = [(f"{NASTY} {n}", -float(n)) for n in range(1, count)]
                text = answer.get("translation", answer.get("summary"))
                answer["candidates"] = [(text, answer["score"]), *others]
        return answers

    @override
    async def generate(
        self,
        model: str | None,
        prompt: Any,
        decoding: Decoding,
        *,
        samples: int = 1,
        template: bool = False,
        top: int = 0,
        open_ended: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        self.prompts.append((prompt, decoding))
        told = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if told not in ("for ever", "a flood"):
            more: dict[str, Any] = {"template": template, "open_ended": open_ended}
            whole = super().generate(model, prompt, decoding, samples=samples, **more)
            async for piece in whole:
                yield piece
            return
        try:
            while True:
                yield Piece(0, f"{NASTY} ", tokens=(1,), prompt_tokens=2)
                await asyncio.sleep(0.005 if told == "for ever" else 0)
        finally:
            self.closed += 1


@pytest.fixture(scope="module")
def service(bundles: dict[str, Bundle]) -> PageService:
    return PageService(bundles)


@pytest.fixture(scope="module")
def site(service: PageService, bundles: dict[str, Bundle]) -> Iterator[str]:
    """Where the page is."""
    live = LiveServer(
        service, ServeOptions(models=tuple((name, name) for name in bundles), max_chars=2000)
    )
    yield f"http://127.0.0.1:{live.port}"
    live.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    with sync.sync_playwright() as play:
        started = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield started
        started.close()


@dataclass
class Visit:
    """The page in a tab, and what went wrong in it."""

    page: Any
    site: str
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def go(self, place: str) -> None:
        """Open a view: `model/view`; that of before may still be there for a moment."""
        self.page.goto(f"{self.site}/#{place}")
        model, view = place.split("/")
        tab = f"[role=tab][data-view={view}][aria-selected=true]"
        self.page.wait_for_selector(f"main:has(h1:text-is('{model}')) {tab}")

    def turn(self, place: str) -> None:
        """Open a view of the page that is there, or the model's first where it has no such view."""
        self.page.evaluate(
            """place => new Promise(done => {
              if (location.hash === `#${place}`) return done();
              addEventListener("hashchange", () => done(), { once: true });
              location.hash = place;
            })""",
            place,
        )

    def shown(self, selector: str) -> Any:
        return self.page.locator(selector).locator("visible=true")

    def fill(self, name: str, text: str) -> None:
        self.shown(f"[name={name}]").fill(text)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def texts(self, selector: str) -> list[str]:
        return [str(text) for text in self.shown(selector).all_text_contents()]

    def until(self, holds: str) -> None:
        """Wait for what the page's own rules let no string of JavaScript wait for."""
        wait_until(lambda: bool(self.page.evaluate(holds)), 60)

    def status(self) -> str:
        return "".join(self.texts("[role=tabpanel] .row > .status"))

    def ask(self, model: str, button: str = "Answer", **columns: str) -> None:
        self.go(f"{model}/ask")
        for name, text in columns.items():
            self.fill(name, text)
        self.press(button)
        self.shown(".output > *").first.wait_for()


@pytest.fixture
def visits(browser: Any, site: str) -> Iterator[Callable[..., Visit]]:
    """Opens tabs; none of them may complain, ask others, or run what is not ours."""
    opened: list[Visit] = []

    def visit(address: str = site, *, refused: bool = False, **settings: Any) -> Visit:
        settings = {"locale": "en-US", **settings}
        own = Visit(browser.new_context(**settings).new_page(), address)
        own.page.set_default_timeout(60_000)
        own.page.on("request", lambda request: own.asked.append(request.url))
        own.page.on("pageerror", lambda error: own.errors.append(str(error)))

        def note(message: Any) -> None:
            # Browsers tell of each answer that is an error.
            if not (refused and message.text.startswith("Failed to load resource")):
                own.errors.append(message.text)

        own.page.on("console", note)
        opened.append(own)
        return own

    yield visit
    for own in opened:
        assert own.page.evaluate("window.broken") is None
        assert own.errors == []
        assert [url for url in own.asked if not url.startswith((own.site, "blob:"))] == []
        own.page.context.close()


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """Do some work in a thread: in this one the browser's own loop runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def predicted(service: PageService, model: str, given: Any, **more: Any) -> dict[str, Any]:
    (answer,) = done(service.predict(model, [given], **more))
    return dict(answer)


def percent(share: float) -> str:
    return f"{share:.1%}"


def ranked(scores: dict[str, float]) -> list[tuple[str, str]]:
    best = sorted(scores.items(), key=lambda item: -item[1])
    return [(name, percent(score)) for name, score in best]


def bars(visit: Visit) -> list[tuple[str, str]]:
    names, scores = visit.texts(".bars .name"), visit.texts(".bars .score")
    return list(zip(names, scores, strict=True))


@pytest.mark.parametrize("model", ["labels", "several"])
def test_classes_are_bars(visits: Any, service: PageService, model: str) -> None:
    visit = visits()
    visit.ask(model, text=NASTY)
    answer = predicted(service, model, NASTY)
    assert bars(visit) == ranked(answer["scores"])
    assert visit.texts(".chip") == answer.get("labels", [answer.get("label")])
    assert visit.shown(".bars .chosen").count() == len(visit.texts(".chip"))


def test_pairs_are_scored(visits: Any, service: PageService) -> None:
    visit, pair = visits(), ["good film", NASTY]
    given = dict(zip(("sentence1", "sentence2"), pair, strict=True))
    visit.ask("ranks", **given)
    assert visit.texts(".figure") == [
        f"{predicted(service, 'ranks', pair)['score']:.3f}".rstrip("0")
    ]
    visit.ask("alike", **given)
    assert bars(visit) == ranked(predicted(service, "alike", pair)["scores"])


def test_choices_have_bars(visits: Any, service: PageService) -> None:
    visit = visits()
    visit.ask("choices", context="the film", choices=f"good\n\n{NASTY}\nun x")
    options = ["good", NASTY, "un x"]
    answer = predicted(service, "choices", {"context": "the film", "choices": options})
    assert bars(visit) == list(zip(options, map(percent, answer["scores"]), strict=True))
    assert visit.texts(".chosen .name") == [options[answer["choice"]]]


def test_entities_are_coloured_at_their_characters(visits: Any, service: PageService) -> None:
    # Before the entities stands a character that JavaScript counts twice.
    visit, text = visits(), "😀 good film <b>x un bad 好"
    visit.ask("tags", tokens=text)
    found = predicted(service, "tags", text)["entities"]
    assert found
    types = visit.texts(".prose .type")
    assert types == [entity["type"] for entity in found]
    marks = visit.texts(".prose .entity")
    spans = [own.removesuffix(name) for own, name in zip(marks, types, strict=True)]
    assert spans == [text[entity["start"] : entity["end"]] for entity in found]
    counts = [f"{name} × {types.count(name)}" for name in dict.fromkeys(types)]
    assert sorted(visit.texts(".legend li")) == sorted(counts)


def test_an_answer_is_marked_in_its_passage(visits: Any, service: PageService) -> None:
    visit, passage = visits(), f"😀 good film 中国 {NASTY}"
    given = {"question": "What film?", "context": passage}
    visit.ask("answers", **given)
    answer = predicted(service, "answers", given)
    assert visit.texts(".prose") == [passage]
    assert visit.texts("mark.answer") == [passage[answer["start"] : answer["end"]]]
    assert visit.texts(".chip") == [answer["answer"]]
    visit.ask("unanswerable", **given)
    assert visit.texts(".verdict") == ["The passage does not hold the answer."]
    assert visit.shown("mark").count() == 0
    assert visit.shown(".bars li").count() == 5


def test_gaps_are_filled_with_the_alternative_that_is_chosen(
    visits: Any, service: PageService
) -> None:
    visit, text = visits(), "[MASK] film <b>[MASK]"
    visit.go("fill/ask")
    visit.fill("text", "[MASK] film <b>")
    visit.page.keyboard.press("End")
    visit.press("Add a gap")
    assert visit.shown("[name=text]").input_value() == text
    visit.press("Answer")
    gaps = predicted(service, "fill", text)["gaps"]
    visit.shown(".pick").first.wait_for()
    assert bars(visit) == [(own["token"], percent(own["score"])) for gap in gaps for own in gap]
    visit.shown(".pick").nth(1).locator("button").nth(2).click()
    first, last = gaps[0][0]["token"], gaps[1][2]["token"]
    assert visit.texts(".prose") == [
        f"{first.removeprefix('##')} film <b>{last.removeprefix('##')}"
    ]
    pressed = visit.texts(".pick [aria-pressed=true]")
    assert pressed == [first, last]


@pytest.mark.parametrize(("model", "column", "key", "beams"), WRITERS)
def test_what_is_written_has_as_many_alternatives_as_there_are_beams(
    visits: Any, service: PageService, model: str, column: str, key: str, beams: int
) -> None:
    visit = visits()
    visit.ask(model, **{column: "the good film"})
    answer = predicted(service, model, "the good film")
    assert visit.texts(".prose") == [answer[key]]
    assert visit.texts(".alternatives li") == []
    select = visit.page.get_by_label("Alternatives")
    assert select.locator("option").last.text_content() == str(beams)
    select.select_option(str(beams))
    visit.press("Answer")
    visit.shown(".alternatives").wait_for()
    assert visit.texts(".prose") == [answer[key]]
    assert visit.texts(".alternatives li") == [f"{NASTY} {n} -{n}" for n in range(1, beams)]


def test_where_no_search_is_made_no_alternatives_are_offered(visits: Any) -> None:
    visit = visits()
    visit.go("labels/ask")
    assert visit.page.get_by_label("Alternatives").count() == 0


def test_an_answer_is_explained(visits: Any) -> None:
    visit = visits()
    visit.ask("labels", text="good")
    visit.press("Why?")
    visit.shown(".words").wait_for()
    assert visit.texts(".words .word") == ["<i>x", "y"]
    assert visit.texts(".words .against.joined") == ["y"]
    visit.shown("summary").get_by_text("As a table").click()
    assert visit.texts("tbody tr") == ["<i>x0.5", "y-0.25"]
    assert "Together: 0.25." in visit.texts("details > p.faint")[0]
    visit.shown("summary").get_by_text("Attention").click()
    assert visit.shown(".heat td[title]").first.get_attribute("title") == "<i>x → <i>x: 0.625"
    visit.shown("details select").select_option("0")
    assert visit.shown(".heat td[title]").first.get_attribute("title") == "<i>x → <i>x: 0.25"


def test_an_error_is_the_servers_sentence(visits: Any) -> None:
    visit = visits(refused=True)
    visit.go("fill/ask")
    visit.fill("text", "good")
    visit.press("Answer")
    visit.shown(".status.error").wait_for()
    assert "no [MASK]" in visit.status()
    visit.fill("text", "[MASK] good")
    visit.page.keyboard.press("Control+Enter")
    visit.shown(".bars").wait_for()
    assert visit.status() == ""


def test_a_text_goes_on_as_the_generator_writes_it(visits: Any, service: PageService) -> None:
    visit = visits()
    visit.go("lm/complete")
    visit.fill("prompt", "the cat <b>")
    visit.shown("summary").click()
    for name, value in {"temperature": "0", "top_p": "1", "max_tokens": "5", "seed": "7"}.items():
        visit.fill(name, value)
    visit.press("Continue")
    visit.until("document.querySelector('[role=tabpanel] .status').textContent.includes(' in ')")
    prompt, decoding = service.prompts[-1]
    assert (decoding.seed, decoding.max_new_tokens, decoding.top_p) == (7, 5, 1.0)
    generator = service.held("lm").generator
    (whole,) = generator.generate([generator.prompt("the cat <b>")], decoding)
    assert visit.texts(".prose") == [prompt + whole.text]
    assert visit.status().startswith(f"{len(whole.tokens)} tokens in ")
    # What is left empty is not sent.
    visit.fill("top_k", "3")
    visit.fill("seed", "")
    visit.press("Continue")
    wait_until(lambda: service.prompts[-1][1].top_k == 3)
    assert service.prompts[-1][1].seed != 7


@pytest.mark.parametrize("how", ["Escape", "Stop", "hidden"])
def test_a_stream_is_stopped(visits: Any, service: PageService, how: str) -> None:
    visit, before = visits(), service.closed
    visit.go("lm/complete")
    visit.fill("prompt", "for ever")
    visit.page.keyboard.press("Control+Enter")
    visit.until("document.querySelector('.written').textContent.length > 200")
    if how == "hidden":
        # In another view Escape is not meant for it.
        visit.page.get_by_role("tab", name="Model card").click()
        visit.shown(".card").wait_for()
        visit.page.keyboard.press("Escape")
        visit.page.get_by_role("tab", name="Complete").click()
        visit.page.get_by_role("button", name="Stop").wait_for()
    visit.press("Stop") if how == "Stop" else visit.page.keyboard.press("Escape")
    visit.until("document.querySelector('[role=tabpanel] .status').textContent === 'Stopped.'")
    wait_until(lambda: service.closed == before + 1)
    # What came stays, as the text that it is.
    assert visit.texts(".written")[0].startswith(NASTY)
    assert visit.page.get_by_role("button", name="Continue").is_visible()


def test_a_conversation_is_remembered_until_a_new_one(visits: Any, service: PageService) -> None:
    visit = visits()
    visit.go("chat/chat")
    visit.shown("summary").click()
    visit.fill("system", "be good")
    visit.fill("max_tokens", "3")
    box = visit.shown("[name=message]")
    box.fill("the <b>film?")
    box.press("Shift+Enter")
    assert box.input_value() == "the <b>film?\n"
    # A word that is chosen by an input method is no message.
    box.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    box.press("Backspace")
    box.press("Enter")
    visit.until("document.querySelector('[role=tabpanel] .status').textContent.includes(' in ')")
    reply = visit.texts(".turn.assistant .prose")[0]
    assert visit.texts(".turn.user .prose") == ["the <b>film?"]
    box.fill("for ever")
    box.press("Enter")
    visit.until("document.querySelector('[aria-busy]')?.textContent.length > 200")
    system, first = (
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "the <b>film?"},
    )
    asked = [system, first, {"role": "assistant", "content": reply}]
    assert service.prompts[-1][0] == [*asked, {"role": "user", "content": "for ever"}]
    visit.page.keyboard.press("Escape")
    visit.until("document.querySelector('[role=tabpanel] .status').textContent === 'Stopped.'")
    visit.press("New chat")
    assert visit.shown(".turn").count() == 0
    box.fill("bad?")
    box.press("Enter")
    wait_until(lambda: service.prompts[-1][0] == [system, {"role": "user", "content": "bad?"}])


def begun(visit: Visit, message: str, length: int) -> Any:
    """Begin a conversation, of whose reply so many characters are there; the box to write in."""
    visit.go("chat/chat")
    box = visit.shown("[name=message]")
    box.fill(message)
    box.press("Enter")
    visit.until(f"document.querySelector('[aria-busy]')?.textContent.length > {length}")
    return box


def test_a_reply_that_comes_faster_than_it_can_be_shown_is_stopped(
    visits: Any, service: PageService
) -> None:
    visit, before = visits(), service.closed
    begun(visit, "a flood", 100_000)
    visit.page.keyboard.press("Escape")
    visit.until("document.querySelector('[role=tabpanel] .status').textContent === 'Stopped.'")
    wait_until(lambda: service.closed == before + 1)
    assert visit.texts(".turn.assistant .prose")[0].startswith(NASTY)


def test_a_new_conversation_ends_the_reply_that_is_being_written(
    visits: Any, service: PageService
) -> None:
    visit, before = visits(), service.closed
    box = begun(visit, "for ever", 200)
    visit.press("New chat")
    wait_until(lambda: service.closed == before + 1)
    visit.page.get_by_role("button", name="Send").wait_for()
    assert visit.shown(".turn").count() == 0
    # Nothing is left of it: neither in what is asked next nor in what is shown.
    box.fill("good?")
    box.press("Enter")
    visit.until("document.querySelector('[role=tabpanel] .status').textContent.includes(' in ')")
    assert service.prompts[-1][0] == [{"role": "user", "content": "good?"}]
    assert visit.texts(".turn.user .prose") == ["good?"]
    assert visit.shown(".turn").count() == 2


def test_texts_are_ranked_by_cosine(visits: Any, service: PageService) -> None:
    visit, texts = visits(), ["good film", NASTY, "un 好"]
    visit.go("bare/nearest")
    visit.fill("texts", "\n".join(texts))
    visit.fill("query", "bad film")
    visit.press("Search")
    visit.shown(".bars").wait_for()
    vectors = done(service.embed("bare", ["bad film", *texts], normalize=True)).vectors
    cosines = vectors[1:] @ vectors[0]
    order = np.argsort(-cosines)
    assert visit.texts(".bars .name") == [texts[i] for i in order]
    assert [float(own) for own in visit.texts(".bars .score")] == pytest.approx(
        cosines[order].tolist(), abs=1e-3
    )


def downloaded(visit: Visit) -> list[list[str]]:
    with visit.page.expect_download() as download:
        visit.press("Download CSV")
    data = Path(download.value.path()).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))


def test_a_table_comes_back_with_answers(visits: Any, service: PageService) -> None:
    rows = [
        ["1", 'say "good", twice\nor not', "x"],
        ["-2", "=HYPERLINK(1)", "+x"],
        ["3", "un " * 1000, "@x"],
        ["-4.5", NASTY, "－x"],
    ]
    table = io.StringIO(newline="")
    csv.writer(table).writerows([["id", "text", "label"], *rows])
    visit = visits(refused=True)
    visit.go("labels/batch")
    visit.fill("rows", table.getvalue())
    assert visit.texts("[role=tabpanel] form > p.faint") == ["4 rows to answer."]
    visit.press("Answer all")
    visit.shown(".rows").wait_for()
    assert visit.status() == "Done: 4 rows, 1 with an error."
    head, *answers = downloaded(visit)
    labels = ["good", "<i>bad", "好"]
    scores = [f"scores.{name}" for name in labels]
    assert head == ["id", "text", "label", "predicted_label", "score", *scores, "error"]
    for row, answer in zip(rows, answers, strict=True):
        # Numbers stay numbers; what a spreadsheet would compute is a text.
        marked = ["'" + cell if cell[0] in "=+@－" else cell for cell in row]
        assert answer[:3] == marked
        if row[0] == "3":
            assert answer[3:-1] == [""] * 5
            assert "2,000" in answer[-1]
            continue
        assert answer[-1] == ""
        right = predicted(service, "labels", row[1])
        assert answer[3] == right["label"]
        assert [float(own) for own in answer[4:8]] == pytest.approx(
            [right["score"], *(right["scores"][name] for name in labels)]
        )


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
def test_files_are_read_as_they_are_written(
    visits: Any, service: PageService, encoding: str
) -> None:
    text = "第二,第一\n好电影,坏电影\n看,不看\n"
    visit = visits()
    visit.go("alike/batch")
    visit.page.set_input_files(
        "input[type=file]",
        {"name": "表.csv", "mimeType": "text/csv", "buffer": text.encode(encoding)},
    )
    visit.shown(".drop bdi").wait_for()
    assert visit.texts(".drop bdi") == ["表.csv"]
    # Its heading names no columns of the model: the person says what they are.
    visit.page.get_by_label("The first row is the heading").check()
    visit.page.get_by_label("Column of “First text”").select_option(label="第一")
    visit.page.get_by_label("Column of “Second text”").select_option(label="第二")
    visit.press("Answer all")
    visit.shown(".rows").wait_for()
    head, *answers = downloaded(visit)
    assert head[:3] == ["第二", "第一", "label"]
    right = [predicted(service, "alike", pair) for pair in (["坏电影", "好电影"], ["不看", "看"])]
    assert [answer[2] for answer in answers] == [own["label"] for own in right]


@pytest.mark.slow
def test_a_file_of_a_thousand_rows(visits: Any, service: PageService) -> None:
    table = io.StringIO(newline="")
    texts = [f'un "film" {i},\n好' if i % 3 else f"bad {i}" for i in range(1000)]
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([["id", "text"], *enumerate(texts)])
    visit = visits()
    visit.go("labels/batch")
    file = {"name": "a.csv", "mimeType": "text/csv"}
    content = table.getvalue().encode("utf-8-sig")
    visit.page.set_input_files("input[type=file]", {**file, "buffer": content})
    visit.until("document.querySelector('.drop bdi').textContent === 'a.csv'")
    assert visit.texts("[role=tabpanel] form > p.faint") == ["1,000 rows to answer."]
    visit.press("Answer all")
    visit.shown(".rows").wait_for()
    assert visit.status() == "Done: 1,000 rows, 0 with an error."
    head, *answers = downloaded(visit)
    assert head[:3] == ["id", "text", "label"]
    assert [row[:2] for row in answers] == [[str(i), text] for i, text in enumerate(texts)]
    right = done(service.predict("labels", texts))
    assert [row[2] for row in answers] == [own["label"] for own in right]
    # A column of other texts is the person's choice, and a table without the right names is told.
    other = b"id,body\n1,good\n2,bad\n"
    visit.page.set_input_files("input[type=file]", {**file, "buffer": other})
    visit.page.get_by_label("Column of “Text”").wait_for()
    assert visit.texts("[role=tabpanel] form > p.faint") == [
        "3 rows to answer.",
        "No column is called “text”: check which is which, and whether the first row is the "
        "heading.",
    ]


def test_each_line_is_a_text_also_with_commas(visits: Any) -> None:
    visit = visits()
    visit.go("labels/batch")
    visit.fill("rows", 'good, bad\n\n"un", he said')
    visit.press("Answer all")
    visit.shown(".rows").wait_for()
    head, *answers = downloaded(visit)
    assert head[0] == "text"
    assert [answer[0] for answer in answers] == ["good, bad", '"un", he said']


def test_a_batch_that_is_stopped_keeps_what_it_has(visits: Any) -> None:
    visit = visits()
    visit.go("labels/batch")
    visit.fill("rows", "\n".join(f"good {i}" for i in range(70)))
    # The third request is never answered.
    asked: list[Any] = []

    def hold(route: Any) -> None:
        asked.append(route)
        if len(asked) < 3:
            route.continue_()

    visit.page.route("**/v1/predict", hold)
    visit.press("Answer all")
    visit.until("document.querySelector('progress').value === 64")
    visit.page.keyboard.press("Escape")
    visit.shown(".rows").wait_for()
    assert visit.status() == "Stopped after 64 of 70 rows. The rest has no answer."
    rows = downloaded(visit)
    assert len(rows) == 71
    assert [bool(row[1]) for row in rows[1:]] == [True] * 64 + [False] * 6


def test_where_there_is_no_room_it_waits(visits: Any) -> None:
    visit, refused = visits(refused=True), []

    def full(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(1)
        body = '{"error": {"message": "The queue is full."}}'
        route.fulfill(status=429, headers={"Retry-After": "0"}, body=body)

    visit.go("labels/batch")
    visit.fill("rows", "good\nbad")
    visit.page.route("**/v1/predict", full)
    visit.press("Answer all")
    visit.shown(".rows").wait_for()
    assert visit.status() == "Done: 2 rows, 0 with an error."


def test_a_card_is_text(visits: Any) -> None:
    visit = visits()
    visit.go("labels/card")
    visit.shown(".card h3").wait_for()
    card = visit.shown(".card")
    assert visit.texts(".card h3") == ["About it"]
    assert visit.texts(".card em") == ["it"]
    assert visit.texts(".card p code") == [NASTY]
    assert visit.texts(".card strong") == ["<b>strong"]
    assert visit.texts(".card td") == ["<i>F1", "0.9"]
    assert visit.texts(".card li") == ["one", "two"]
    assert visit.texts(".card pre") == ["<script>window.broken = true</script>"]
    links = card.locator("a").evaluate_all("all => all.map(a => a.href)")
    assert links == ["https://example.org/a"]
    assert card.locator("script, img, iframe, b, i").count() == 0
    assert "license" not in card.inner_text()
    facts = dict(zip(visit.texts(".facts dt"), visit.texts(".facts dd"), strict=True))
    assert facts["Labels"] == "good, <i>bad, 好"


def test_the_language_is_the_browsers_and_can_be_changed(visits: Any) -> None:
    visit = visits(locale="zh-CN")
    visit.ask("labels", button="回答", text="好电影")
    assert visit.page.evaluate("document.documentElement.lang") == "zh-CN"
    assert visit.texts("[role=tab]") == ["试用", "相近文本", "批量", "模型卡片"]
    visit.page.get_by_label("语言").select_option("en")
    assert visit.page.evaluate("document.documentElement.lang") == "en"
    assert visit.texts("[role=tab]") == ["Try it", "Nearest texts", "Many at once", "Model card"]
    # Nothing that was there is lost, and the choice is remembered.
    assert visit.shown("[name=text]").input_value() == "好电影"
    assert visit.texts(".output h3") == ["Scores"]
    visit.page.reload()
    visit.page.get_by_role("tab", name="Try it").wait_for()


def test_every_text_is_there_in_both_languages() -> None:
    pairs = re.findall(
        r'^  "?([\w, -]+)"?: \[\s*"(.*?)",\s*"(.*?)"\],', SCRIPTS["texts.js"], re.M | re.S
    )
    assert len(pairs) > 100
    for key, english, chinese in pairs:
        names = [set(re.findall(r"\{(\w+)", own)) for own in (english, chinese)]
        assert names[0] == names[1], key
        assert re.search("[\u4e00-\u9fff]", chinese) or english == chinese or key == "facts", key
    known = {key for key, _, _ in pairs}
    everything = "".join(text for name, text in SCRIPTS.items() if name != "texts.js")
    pattern = (
        r'(?:\bt\("\w+", |say\(\w+, |heading\(|status\(|job\(|field\(|return \[|text\()"([\w ,-]+)"'
    )
    used = set(re.findall(pattern, everything))
    assert len(used) > 50
    assert used - known == set()


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_every_control_has_a_name(visits: Any, service: PageService, language: str) -> None:
    visit = visits(locale=language)
    visit.go("labels/ask")
    for served in service.models():
        for view in ("chat", "complete", "ask", "nearest", "batch", "card"):
            visit.turn(f"{served.name}/{view}")
            nameless = visit.page.evaluate(
                """() => [...document.querySelectorAll("input, select, textarea, button")]
                .filter(node => !(node.labels?.length && node.labels[0].textContent.trim()
                  || node.tagName === "BUTTON" && node.textContent.trim()))
                .map(node => node.outerHTML)"""
            )
            assert nameless == []


def test_views_are_chosen_with_the_keyboard(visits: Any) -> None:
    visit = visits()
    visit.go("labels/ask")
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate("document.activeElement.id") == "main"
    visit.page.keyboard.press("Tab")
    focused = "document.activeElement.textContent"
    assert visit.page.evaluate(focused) == "Try it"
    outline = visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    visit.page.keyboard.press("ArrowLeft")
    assert visit.page.evaluate(focused) == "Model card"
    visit.shown(".card").wait_for()
    assert visit.page.url.endswith("#labels/card")
    visit.page.keyboard.press("Home")
    visit.shown("[name=text]").wait_for()
    # The one tab that is chosen is a stop; then comes what is in it.
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.name") == "text"
    visit.page.go_back()
    visit.shown(".card").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_it_fits_a_phone(visits: Any, service: PageService, language: str, scheme: str) -> None:
    visit = visits(locale=language, color_scheme=scheme, viewport={"width": 360, "height": 740})
    button = "Answer" if language == "en-US" else "回答"
    visit.ask("labels", button=button, text=NASTY * 3)
    widths = [visit.page.evaluate("document.documentElement.scrollWidth")]
    for place in ("several/batch", "chat/chat", "bare/nearest", "labels/card", "lm/complete"):
        visit.turn(place)
        widths.append(visit.page.evaluate("document.documentElement.scrollWidth"))
    assert max(widths) <= 360
    back = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", back)[:3]))
    assert (brightness > 384) == (scheme == "light")
    visit.shown("header select").last.select_option("light" if scheme == "dark" else "dark")
    changed = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert changed != back


def test_a_key_is_asked_for(visits: Any, service: PageService, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("the-right-key-of-this-server\n", encoding="utf-8")
    keys.chmod(0o600)
    options = ServeOptions((("labels", "labels"),), api_key_file=keys)
    live = LiveServer(service, options)
    try:
        visit = visits(f"http://127.0.0.1:{live.port}", refused=True)
        visit.page.goto(visit.site)
        box = visit.page.get_by_label("API key")
        box.wait_for()
        told = visit.shown("main > .status").inner_text()
        assert "needs a key" in told
        for own in ("a-wrong-key", "the-right-key-of-this-server"):
            box.fill(own)
            with visit.page.expect_response("**/v1/models"):
                box.press("Enter")
            visit.until(
                "document.querySelector('.key').hidden === !document.querySelector('.error')"
            )
        visit.page.get_by_role("tab", name="Nearest texts").wait_for()
        stored = visit.page.evaluate("[{...sessionStorage}, {...localStorage}, document.cookie]")
        assert stored == [{"pretune-key": "the-right-key-of-this-server"}, {}, ""]
        visit.ask("labels", text="good")
        visit.press("Forget the key")
        box.wait_for()
        assert visit.page.evaluate("sessionStorage.length") == 0
    finally:
        live.close()


@contextmanager
def served_by(service: Any, **options: Any) -> Iterator[LiveServer]:
    live = LiveServer(service, ServeOptions((("labels", "labels"),), **options))
    yield live
    live.close()


def test_files_are_sent_as_what_they_are(service: PageService) -> None:
    with served_by(service) as live:
        start = live.request("GET", "/")
        assert start.status == 200
        assert start.headers["content-type"] == "text/html; charset=utf-8"
        policy = start.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "require-trusted-types-for 'script'" in policy
        script = live.request("GET", "/page/page.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert script.headers["cache-control"] == "no-cache"
        assert script.body.decode() == SCRIPTS["page.js"]
        again = live.request(
            "GET", "/page/page.js", headers={"If-None-Match": script.headers["etag"]}
        )
        assert (again.status, again.body) == (304, b"")
        assert live.request("GET", "/page/page.css").headers["content-type"].startswith("text/css")
        for path in ("/page/site.py", "/page/__init__.py", "/page/..%2Fapp.py", "/page/none.js"):
            assert live.request("GET", path).status == 404


def test_no_script_makes_elements_of_texts() -> None:
    for name, script in SCRIPTS.items():
        forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert re.findall(forbidden, script) == [], name
        assert "http" not in script.replace("https?:", ""), name
    start = PAGE.joinpath("index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|//", start)
