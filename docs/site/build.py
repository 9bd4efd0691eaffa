"""Builds the documentation site in both languages, offline: `make docs`.

    python docs/site/build.py [--output build/site] [--without-api]

The pages are those of docs/, docs/zh-CN/ and the two READMEs, as they are read in the repository.
A copy of them is made in which links to files of the repository lead to pages with their text, and
Sphinx makes the site of the copy. It ends with a check that every link within the site leads
somewhere; one that does not is an error.
"""

from __future__ import annotations

import argparse
import ast
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent

#: The pages in the order of the menu, by group; a page that no group names comes at the end.
MENU: dict[tuple[str, str], tuple[str, ...]] = {
    ("Getting going", "上手"): ("recipes", "predict", "mistakes"),
    ("Data", "数据"): ("data", "tokenizers", "corpus"),
    ("Pre-training", "预训练"): (
        *("pretraining-bert", "pretraining-electra", "pretraining-gpt", "classics"),
        "several-machines",
    ),
    ("Fine-tuning", "微调"): (
        *("training", "classification", "question-answering", "tagging", "embeddings"),
        *("translation", "chat", "instructions", "alignment", "experiments", "labelling"),
    ),
    ("Using a model", "使用模型"): ("generation", "prompting", "serving"),
    ("In Python", "在 Python 中"): ("python", "scikit-learn", "your-own"),
    ("Judging", "评判"): ("reports", "comparing"),
    ("Smaller and elsewhere", "变小与导出"): ("smaller", "distillation", "export"),
    ("Understanding", "理解"): (
        *("architecture", "ideas", "checkpoints", "results", "performance"),
    ),
}
OTHERS = ("More", "更多")
#: The Chinese page in the place of the reference.
CHINESE_API = "# API\n\n[API 参考](out:../../en/api/index.html)由代码中的英文文档生成。\n"
#: The rooms whose modules the reference shows.
ROOMS = ("data", "tokenizers", "models", "decoding", "tasks", "inference", "training", "evaluation")

_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))|(?<=src=\")([^\"]+)(?=\")")
_CODE = re.compile(r"(^```.*?^```\s*$)", re.MULTILINE | re.DOTALL)


class Staged:
    """The copy of the pages of one language that Sphinx reads.

    Args:
        language: en or zh.
        folder: where the copy is.
    """

    def __init__(self, language: str, folder: Path) -> None:
        self.language, self.folder = language, folder
        self.source = ROOT / "docs" if language == "en" else ROOT / "docs/zh-CN"
        self.front = ROOT / ("README.md" if language == "en" else "README.zh-CN.md")
        self.files: set[Path] = set()  # of the repository, that pages link to
        folder.mkdir(parents=True)

    def write(self, *, api: bool) -> None:
        """Copy the pages, the images and the notebooks; write the menu."""
        shutil.copytree(ROOT / "docs/images", self.folder / "images")
        pages = sorted(path.stem for path in self.source.glob("*.md"))
        for page in pages:
            self._copy(self.source / f"{page}.md", page)
        notebooks = sorted((ROOT / "examples/walkthroughs").glob(f"*.{self.language}.ipynb"))
        for notebook in notebooks:
            target = self.folder / "walkthroughs" / f"{notebook.name.split('.')[0]}.ipynb"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(notebook, target)
        # The reference is in English alone: a Chinese page leads to it.
        if api and self.language == "en":
            _write_reference(self.folder / "api")
        elif api:
            (self.folder / "api").mkdir()
            (self.folder / "api/index.md").write_text(CHINESE_API, encoding="utf-8")
        self._copy(self.front, "index", self._menu(pages, [n.name for n in notebooks], api=api))

    def _copy(self, path: Path, page: str, more: str = "") -> None:
        text = path.read_text(encoding="utf-8")
        # What stands in fences is code, no link.
        parts = _CODE.split(text)
        for number in range(0, len(parts), 2):
            parts[number] = _LINK.sub(lambda match: self._target(match[0], path), parts[number])
        (self.folder / f"{page}.md").write_text("".join(parts) + more, encoding="utf-8")

    def _target(self, link: str, path: Path) -> str:
        """Where a link of a page leads on the site."""
        target, _, fragment = link.partition("#")
        if not target or urlsplit(link).scheme:
            return link
        there = Path(os.path.normpath(path.parent / unquote(target)))
        anchor = f"#{fragment}" if fragment else ""
        if there.is_relative_to(ROOT / "docs/images"):
            return f"images/{there.relative_to(ROOT / 'docs/images').as_posix()}"
        page = _page_of(there)
        if page is None:
            self.files.add(there)
            return f"out:../source/{there.relative_to(ROOT).as_posix()}.html{anchor}"
        language, name = page
        if language == self.language:
            # Links within a language are to what Sphinx reads.
            return f"{name}{there.suffix}{anchor}"
        return f"out:../{language}/{name}.html{anchor}"

    def _menu(self, pages: list[str], notebooks: list[str], *, api: bool) -> str:
        column = 0 if self.language == "en" else 1
        left = [page for page in pages if not any(page in group for group in MENU.values())]
        groups = [*MENU.items(), (OTHERS, tuple(left))]
        text = ""
        for titles, names in groups:
            there = [name for name in names if name in pages]
            text += _toctree(titles[column], there)
        walks = [f"walkthroughs/{name.split('.')[0]}" for name in notebooks]
        text += _toctree(("Walkthroughs", "实例讲解")[column], walks)
        if api:
            text += _toctree("API", ["api/index"])
        return text


def _toctree(caption: str, entries: list[str]) -> str:
    """A group of the menu; nothing for no entries."""
    if not entries:
        return ""
    lines = "\n".join(entries)
    return f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def _page_of(path: Path) -> tuple[str, str] | None:
    """The language and the name of the page that a file is; None: it is another file."""
    relative = path.relative_to(ROOT)
    if relative in (Path("README.md"), Path("README.zh-CN.md")):
        return ("en" if relative.name == "README.md" else "zh"), "index"
    if relative.suffix == ".md" and relative.parent == Path("docs"):
        return "en", relative.stem
    if relative.suffix == ".md" and relative.parent == Path("docs/zh-CN"):
        return "zh", relative.stem
    if relative.suffix == ".ipynb" and relative.parent == Path("examples/walkthroughs"):
        name, language = relative.stem.split(".")
        return language, f"walkthroughs/{name}"
    return None


# The reference


def _write_reference(folder: Path) -> None:
    """Pages that let Sphinx read the docstrings: what `import pretune` gives, then each room."""
    import pretune

    folder.mkdir()
    names = sorted(pretune.__all__)
    directives = []
    for name in names:
        kind = "class" if isinstance(getattr(pretune, name), type) else "function"
        if not callable(getattr(pretune, name)):
            kind = "data"
        directives.append(f".. auto{kind}:: pretune.{name}")
    text = "# API\n\nWhat `import pretune` gives.\n\n" + _rst("\n".join(directives))
    text += _toctree("Rooms", list(ROOMS))
    (folder / "index.md").write_text(text, encoding="utf-8")
    for room in ROOMS:
        modules = [
            ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            for path in sorted((ROOT / "src/pretune" / room).rglob("*.py"))
            if path.stem != "__init__"
        ]
        parts = [
            f"## {name.split('.', 2)[2]}\n\n" + _rst(f".. automodule:: {name}") for name in modules
        ]
        (folder / f"{room}.md").write_text(f"# {room}\n\n" + "\n".join(parts), encoding="utf-8")


def _rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}\n```\n"


# The files of the repository


def write_sources(files: set[Path], folder: Path) -> None:
    """A page with the text of each file, with an anchor for each class and function."""
    style = HtmlFormatter().get_style_defs(".highlight")
    for path in sorted(files):
        name = path.relative_to(ROOT).as_posix()
        target = folder / f"{name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        body = _listing(path, folder) if path.is_dir() else _highlighted(path)
        target.write_text(
            f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title>"
            f"<meta name=viewport content='width=device-width'><style>{style} "
            "body {{ margin: 2rem; font-family: sans-serif }} pre {{ line-height: 1.4 }}</style>"
            f"<h1>{html.escape(name)}</h1>{body}",
            encoding="utf-8",
        )


def _listing(path: Path, folder: Path) -> str:
    """The files of a folder, each with a page."""
    inside = {file for file in path.iterdir() if file.is_file()}
    write_sources(inside, folder)
    items = (f"<li><a href='{path.name}/{f.name}.html'>{f.name}</a>" for f in sorted(inside))
    return f"<ul>{''.join(items)}</ul>"


def _highlighted(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    lines = highlight(text, lexer, HtmlFormatter(linenos=False, lineanchors="line"))
    # Beside the anchors of lines those of names, so that a link outlives an edit.
    for line, name in _definitions(path, text):
        anchor = f'<a id="line-{line}" name="line-{line}" href="#line-{line}">'
        lines = lines.replace(anchor, f'<a id="{name}"></a>{anchor}')
    return lines


def _definitions(path: Path, text: str) -> list[tuple[int, str]]:
    if path.suffix != ".py":
        return []
    return [
        (node.lineno, node.name)
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]


# The check


class _Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)
            if value and name in ("href", "src"):
                self.links.add(value)


def broken_links(site: Path) -> list[str]:
    """The links within a site that lead nowhere, each with its page."""
    pages = {p: _Links(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}
    broken = []
    for page, own in pages.items():
        for link in sorted(own.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (
                Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
            )
            anchors = pages[there].anchors if there in pages else None
            fragment = unquote(parts.fragment)
            if not there.exists() or (fragment and anchors is not None and fragment not in anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    return broken


# All of it


def build(output: Path, *, api: bool = True) -> list[str]:
    """Make the site.

    Args:
        output: where it goes; what is there is replaced once the new one is whole.
        api: with the reference, which takes most of the time.

    Returns:
        Sphinx's warnings about the pages, and the links that lead nowhere.
    """
    problems: list[str] = []
    files: set[Path] = set()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        new = Path(scratch) / "site"
        for language in ("en", "zh"):
            staged = Staged(language, Path(scratch) / language)
            staged.write(api=api)
            files |= staged.files
            problems += _sphinx(language, staged.folder, new / language)
        missing = sorted(file for file in files if not file.exists())
        problems += [f"a page links to {file}, which is not there" for file in missing]
        write_sources(files - set(missing), new / "source")
        shutil.copy(SITE / "index.html", new / "index.html")
        problems += broken_links(new)
        shutil.rmtree(output, ignore_errors=True)
        shutil.move(new, output)
    return problems


def _sphinx(language: str, source: Path, target: Path) -> list[str]:
    """Run Sphinx, and give its warnings; those about docstrings are left out."""
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-c", str(SITE)]
    command += ["-d", str(source / "_build"), str(source), str(target)]
    environment = {**os.environ, "PRETUNE_SITE_LANGUAGE": language}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    return [PurePosixPath(line).name for line in lines if "docstring of" not in line]


def main() -> None:
    """Build the site, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build/site")
    parser.add_argument("--without-api", action="store_true", help="leave out the reference")
    options = parser.parse_args()
    problems = build(options.output, api=not options.without_api)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"wrote {options.output / 'index.html'}: open it in a browser")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
