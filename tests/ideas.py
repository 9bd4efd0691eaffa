"""Writes docs/ideas.md and docs/zh-CN/ideas.md from docs/ideas.yaml: `python -m tests.ideas`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs/ideas.yaml"
WALKS = "examples/walkthroughs"
NOTEBOOK = {"en": "notebook", "zh": "笔记本"}

HEADS = {
    "en": (
        "# A map of ideas",
        "[简体中文](zh-CN/ideas.md)",
        "Where each published idea is in the code, which test proves it, and which recipe or "
        "command shows it at work. Read a row from left to right: paper, code, proof, use.",
        ("idea", "paper", "code", "proof", "shown by"),
    ),
    "zh": (
        "# 思想地图",
        "[English](../ideas.md)",
        "每个发表过的思想在代码的哪里、由哪个测试证明、由哪个配方或命令展示。一行从左到右读：论文、代码、证明、用法。",
        ("思想", "论文", "代码", "证明", "展示"),
    ),
}


@dataclass(frozen=True)
class Place:
    """A file of the repository, and a name in it, `Class.method` or empty for all of it."""

    file: str
    name: str


@dataclass(frozen=True)
class Idea:
    """A row of the map."""

    names: dict[str, str]
    paper: str
    code: tuple[Place, ...]
    test: Place
    shown: str  # a recipe, or a command in quotes
    walk: str  # a notebook of examples/walkthroughs that goes through it; empty: none


def sections() -> list[tuple[dict[str, str], list[Idea]]]:
    """The map, section by section, with its titles by language."""
    read = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return [
        ({"en": part["section"], "zh": part["zh"]}, [_idea(row) for row in part["ideas"]])
        for part in read
    ]


def _idea(row: dict[str, str]) -> Idea:
    file, _, names = row["code"].partition(":")
    places = tuple(Place(f"src/pretune/{file}", name) for name in names.split(","))
    test, _, name = row["test"].partition("::")
    named = {"en": row["idea"], "zh": row["zh"]}
    proof = Place(f"tests/{test}", name)
    return Idea(named, row["paper"], places, proof, row["shown"], row.get("walk", ""))


def page(language: str) -> str:
    """The page in a language, Markdown."""
    title, other, text, columns = HEADS[language]
    up = "../" if language == "en" else "../../"
    lines = [title, "", other, "", text, ""]
    for titles, ideas in sections():
        lines += [f"## {titles[language]}", "", f"| {' | '.join(columns)} |"]
        lines += ["|" + "---|" * len(columns)]
        for idea in ideas:
            code = ", ".join(_link(place, up, "src/pretune/") for place in idea.code)
            cells = (
                *(idea.names[language], idea.paper),
                *(code, _link(idea.test, up, "tests/"), _shown(idea, up, language)),
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _shown(idea: Idea, up: str, language: str) -> str:
    shown = f"`{idea.shown.strip(chr(39))}`"
    if not idea.walk:
        return shown
    return f"{shown}, [{NOTEBOOK[language]}]({up}{WALKS}/{idea.walk}.{language}.ipynb)"


def _link(place: Place, up: str, root: str) -> str:
    shown = ": ".join(filter(None, (place.file.removeprefix(root), place.name)))
    anchor = f"#{place.name.split('.')[0]}" if place.name else ""  # the site's pages have these
    return f"[`{shown}`]({up}{place.file}{anchor})"


def pages() -> dict[Path, str]:
    """Both pages by their paths."""
    return {
        ROOT / "docs/ideas.md": page("en"),
        ROOT / "docs/zh-CN/ideas.md": page("zh"),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
