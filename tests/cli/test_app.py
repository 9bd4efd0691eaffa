"""What the commands share: errors as they are shown, bars, options about data."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pretune.bundle.bundle import save
from pretune.cli.app import COMMANDS, app, defined, main, progress_bar
from pretune.errors import with_article
from tests.tasks.every_task import CASES


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a classifier of texts."""
    folder = tmp_path_factory.mktemp("model")
    save(CASES["classify"].bundle(tiny_folder, folder), folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "c.csv"
    path.write_text("text,body,label\nthe good film,bad,good\n", encoding="utf-8")
    return path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def refused(done: Any, *said: str) -> None:
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    for part in said:
        assert part in done.stderr


@pytest.mark.parametrize(("number", "code"), [((), 130), ((signal.SIGTERM,), 143)])
def test_who_insists_on_an_end_is_told_by_its_exit_code(
    number: tuple[int, ...], code: int, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insisted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt(*number)

    monkeypatch.setattr("pretune.inspection.describe.describe", insisted)
    done = run("describe", table)
    assert (done.exit_code, done.stderr) == (code, "stopped; nothing more was saved\n")


def test_a_full_memory_is_told_in_a_sentence(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("pretune.inspection.describe.describe", filled)
    done = run("describe", table)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: the memory is full\n  Close other programs")


def test_errors_show_names_as_they_are() -> None:
    refused(run("describe", "missing/data:train"), "missing/data:train: could not")
    refused(run("describe", "a:smile:b.csv"), "a:smile:b.csv: no such file")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "a" * 5000), "no such recipe or file"),
        (("train", "--resume", "a" * 5000), "no run here"),
        (("inspect", "a" * 5000), ""),
        (("report", "a" * 5000), "too long for the name of a file"),
        (("runs", "a" * 5000), "too long for the name of a file"),
        (("describe", "a" * 5000), "no such file"),
        (("convert", "a" * 5000, "out"), ""),
        (("tokenizer", "a" * 5000, "--vocab-size", "99", "-o", "out"), "no such file"),
        (("prepare", "a" * 5000, "--tokenizer", "minilm", "-o", "out"), "no such file"),
        (("init", "classify", "-o", "a" * 300), "cannot be written (File name too long)"),
        (("ladder", "x.txt", "--minutes", "inf"), "--minutes"),
        (("ladder", "x.txt", "--level", "bpe", "--vocab-size", str(10**21)), "--vocab-size"),
    ],
)
def test_names_and_numbers_beyond_all_bounds(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


class TestOptionsOfTheCommand:
    def test_columns(self, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "data.columns.csv"
        path.write_text("boddy,label\nx,good\n", encoding="utf-8")
        done = run("evaluate", model, path)
        refused(done, f"{path}: no column 'text'", "Say which one it is with --column text=COLUMN")

    def test_the_name_of_the_option(self, tmp_path: Path, tiny_folder: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text('text,label\n"open,good\n', encoding="utf-8")
        refused(run("describe", path), "set --quoting none")


class TestLongTexts:
    """What is taken for a mistake, and how one says that it is none."""

    @pytest.fixture
    def long(self, tmp_path: Path) -> Path:
        path = tmp_path / "long.csv"
        path.write_text(f"text,label\n{'good ' * 30_000}film,good\n", encoding="utf-8")
        return path

    @pytest.mark.parametrize("command", ["evaluate", "report", "predict", "compare"])
    def test_of_a_file(self, model: Path, long: Path, tmp_path: Path, command: str) -> None:
        data = {"predict": ["--file", long], "compare": [model, "--data", long]}.get(
            command, [long]
        )
        page = ["-o", tmp_path / "a.html", "--overwrite", "--explain", 0]
        more = page if command == "report" else []
        done = run(command, model, *data, *more)
        refused(done, f"{long}, line 2, column 'text': a text of 150,004 characters")
        refused(done, "allow it with --max-chars N if that is what you mean")
        done = run(command, model, *data, *more, "--max-chars", 150_004)
        assert done.exit_code == 0, done.output
        refused(run(command, model, *data, *more, "--max-chars", 150_003), "(the limit is 150,003)")


class TestColumns:
    @pytest.mark.parametrize("command", ["evaluate", "report", "predict"])
    def test_given_ones_must_be_there(
        self, model: Path, table: Path, tmp_path: Path, command: str
    ) -> None:
        data = ["--file", table] if command == "predict" else [table]
        more = ["-o", tmp_path / "a.html"] if command == "report" else []
        done = run(command, model, *data, *more, "--column", "text=bdy")
        refused(done, f"{table}: no column 'bdy' (for 'text')", "Did you mean 'body'?")
        done = run(command, model, *data, *more, "--column", "txt=body")
        refused(done, "--column txt=body: the model's task has no column 'txt'", "mean 'text'?")
        done = run(command, model, *data, *more, "--column", "label=stars")
        refused(done, f"{table}: no column 'stars' (for 'label')")

    def test_of_compare(self, model: Path, table: Path) -> None:
        done = run("compare", model, model, "--data", table, "--column", "text=bdy")
        refused(done, f"{table}: no column 'bdy' (for 'text')")

    @pytest.mark.parametrize("command", ["evaluate", "report", "predict", "describe", "embed"])
    def test_how_they_were_read_is_told(self, model: Path, tmp_path: Path, command: str) -> None:
        path = tmp_path / "a.csv"
        path.write_text("text;label\na good film;good\na film;good\n", encoding="utf-8")
        arguments: dict[str, list[object]] = {
            "report": [model, path, "-o", tmp_path / "a.html", "--explain", 0],
            "predict": [model, "--file", path],
            "describe": [path],
            "embed": [model, path, "--output", tmp_path / "a.npy"],
        }
        done = run(command, *arguments.get(command, [model, path]))
        assert done.exit_code == 0, done.output
        told = f"{path}: read with semicolons between columns, not commas"
        assert " ".join(done.stderr.split()).count(told) == 1

    def test_that_are_there(self, model: Path, table: Path) -> None:
        done = run("predict", model, "--file", table, "--column", "text=body", "--json")
        assert json.loads(done.stdout)["text"] == "bad"

    def test_without_a_table(self, model: Path, tmp_path: Path) -> None:
        refused(run("predict", model, "a text", "--column", "text=body"), "--file FILE")
        path = tmp_path / "lines.txt"
        path.write_text("good\n", encoding="utf-8")
        done = run("predict", model, "--file", path, "--column", "text=body")
        refused(done, f"{path}: plain text with one input a line has no columns")


@pytest.mark.parametrize(
    "option",
    [
        ("--column", "text=body"),
        ("--encoding", "utf-8"),
        ("--quoting", "none"),
        ("--max-chars", "9"),
    ],
)
def test_options_about_data_need_data(model: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    done = run("report", model, "-o", tmp_path / "a.html", *option)
    refused(done, f"{option[0]} is about DATA, and there is none")
    refused(run("compare", model, model, *option), f"{option[0]} is about --data, and there is")


class TestAPipe:
    @staticmethod
    def said(given: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
        """The exit code of a command whose standard input holds some bytes."""
        path = folder / "given"
        path.write_bytes(given)
        with path.open("rb") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(file))
            with pytest.raises(SystemExit) as ended:
                app([*map(str, arguments)], prog_name="pretune")
        return int(ended.value.code or 0)

    @pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
    def test_in_another_encoding(
        self, model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, encoding: str
    ) -> None:
        more = () if encoding == "utf-8-sig" else ("--encoding", encoding)
        given = "看电影\n好\n".encode(encoding)
        assert self.said(given, tmp_path, monkeypatch, "predict", model, "--json", *more) == 0
        rows = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
        assert rows == ["看电影", "好"]

    @pytest.mark.parametrize("command", ["predict", "generate"])
    def test_the_way_out(
        self, model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, command: str
    ) -> None:
        given = "好\n看电影\n".encode("gb18030")
        assert self.said(given, tmp_path, monkeypatch, command, model) == 2
        error = capsys.readouterr().err
        assert "input, line 1: not valid UTF-8 (byte 0xba)" in error
        assert "--encoding gb18030" in error

    def test_packed(self, model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        given = gzip.compress(b"the good film\nbad\n")
        assert self.said(given, tmp_path, monkeypatch, "predict", model, "--json") == 0
        assert len(capsys.readouterr().out.splitlines()) == 2

    def test_other_files(self, model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        given = b"%PDF-1.7\n%\xe2\xe3"
        assert self.said(given, tmp_path, monkeypatch, "predict", model) == 2
        assert "input: is a PDF file" in capsys.readouterr().err

    def test_long_lines(self, model: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        given = b"good " * 200_000 + b"\n"
        assert self.said(given, tmp_path, monkeypatch, "predict", model) == 2
        assert "allow it with --max-chars N" in capsys.readouterr().err
        long = ("--max-chars", "1000000")
        assert self.said(given, tmp_path, monkeypatch, "predict", model, *long) == 0


class TestFiles:
    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a"])
    @pytest.mark.parametrize("command", ["predict", "embed"])
    def test_packed(self, model: Path, tmp_path: Path, name: str, command: str) -> None:
        path = tmp_path / name
        path.write_bytes(gzip.compress(b"the good film\nbad\n"))
        if command == "predict":
            done = run("predict", model, "--file", path, "--json")
            assert len(done.stdout.splitlines()) == 2
        else:
            done = run("embed", model, path, "--output", tmp_path / "a.npy")
        assert done.exit_code == 0, done.output

    def test_a_packed_table(self, model: Path, table: Path) -> None:
        packed = table.with_name("c.csv.gz")
        packed.write_bytes(gzip.compress(table.read_bytes()))
        for given in (("predict", model, "--file", packed, "--json"), ("evaluate", model, packed)):
            assert run(*given).exit_code == 0

    def test_a_pipe(self, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "63"
        os.mkfifo(path)
        for raw in (b"the good film\nbad\n", b'{"text": "good"}\n{"text": "bad"}\n'):
            threading.Thread(target=path.write_bytes, args=(raw,), daemon=True).start()
            done = run("predict", model, "--file", path, "--json")
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout.splitlines()[1])["text"] == "bad"
            path.unlink()
            os.mkfifo(path)

    def test_a_name_that_is_too_long(self, model: Path) -> None:
        refused(run("predict", model, "--file", "a" * 5000), "too long")
        refused(run("embed", model, "a" * 5000, "--query", "b"), "no such file")
        refused(run("evaluate", model, "a" * 5000), "no such file")
        refused(run("predict", model, "--question", "a", "--context-file", "a" * 5000), "too long")


def test_what_a_bar_tells_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("with [/x] and :train:") as done:
        assert done is not None
        done(1, 2)
    assert "with [/x] and :train:" in sys.stderr.getvalue()  # type: ignore[attr-defined]


class TestCommands:
    """The table behind `pretune --help`, beside the commands themselves."""

    def test_every_module_of_commands_is_listed(self) -> None:
        folder = Path(sys.modules["pretune.cli.app"].__file__ or "").parent
        shared = {"__init__", "app", "options", "short_forms", "completion", "help_language"}
        modules = {path.stem for path in folder.glob("*.py")} - shared
        assert {listed.module for listed in COMMANDS.values()} == modules

    @pytest.mark.parametrize("name", [*COMMANDS])
    def test_the_summary_is_that_of_the_command(self, name: str) -> None:
        first = re.split(r"\n\s*\n", defined(name).help)[0]
        assert " ".join(first.split()) == COMMANDS[name].summary

    @pytest.mark.parametrize("name", [*COMMANDS])
    def test_its_help_has_an_example(self, name: str) -> None:
        done = run(name, "--help")
        assert done.exit_code == 0
        assert f"pretune {name}" in done.stdout.split("Examples:", 1)[1]

    def test_help_lists_them_in_groups(self) -> None:
        text = run("--help").stdout
        for name, listed in COMMANDS.items():
            group = text[text.index(f"─ {listed.group} ─") :]
            assert re.search(rf"│ {name} +{re.escape(listed.summary)}", group[: group.index("╰")])

    def test_a_slip_is_corrected(self) -> None:
        refused(run("trian"), "No such command 'trian'", "Did you mean 'train'")


def closed_pipe() -> io.TextIOWrapper:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


def full_disk() -> io.TextIOWrapper:
    return open("/dev/full", "w", encoding="utf-8")


class TestOutputThatIsLost:
    """Of commands whose product is what they print."""

    COMMANDS = (
        ("predict", "MODEL", "good"),
        ("predict", "MODEL", "good", "--json"),
        ("evaluate", "MODEL", "DATA"),
        ("describe", "DATA", "--json"),
        ("recipes", "mrpc"),
        ("init", "classify"),
        ("--help",),
        ("predict", "--help"),
        ("--version",),
    )

    @pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
    @pytest.mark.parametrize(
        ("make", "code", "said"),
        [
            (closed_pipe, 141, ""),
            (
                full_disk,
                1,
                "error: standard output: cannot be written (No space left on device)\n",
            ),
            (lambda: None, 1, "error: standard output: cannot be written (Bad file descriptor)\n"),
        ],
        ids=["closed-pipe", "full-disk", "closed"],
    )
    def test_is_no_traceback(
        self,
        make: Any,
        code: int,
        said: str,
        arguments: tuple[str, ...],
        model: Path,
        table: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        given = {"MODEL": str(model), "DATA": str(table)}
        out, notes = make(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["pretune", *(given.get(a, a) for a in arguments)])
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", notes)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == code
        assert notes.getvalue().removeprefix(f"data: 1 from {table}, 5 tokens\n") == said
        if out is not None:
            out.close()

    @pytest.mark.parametrize("make", [closed_pipe, lambda: None], ids=["closed-pipe", "closed"])
    def test_does_not_matter_where_files_have_it(
        self, make: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["pretune", "convert", str(model), str(tmp_path / "out")]
        out, notes = make(), io.StringIO()
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", notes)
        with pytest.raises(SystemExit) as end:
            main()
        assert (end.value.code or 0, notes.getvalue()) == (0, "")
        assert (tmp_path / "out" / "model.safetensors").is_file()
        if out is not None:
            out.close()


def test_an_error_that_nobody_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (closed_pipe, full_disk):
        notes = make()
        monkeypatch.setattr(sys, "argv", ["pretune", "recipes", "mrcp"])
        monkeypatch.setattr(sys, "stderr", notes)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        notes.close()


def test_without_standard_input(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pretune", "predict", str(model), "--json"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().out) == (0, "")


def test_json_for_an_encoding_that_lacks_characters(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["pretune", "predict", str(model), "好 👩", "--json"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, "ascii"))
    with pytest.raises(SystemExit):
        main()
    assert json.loads(held.getvalue().decode("ascii"))["text"] == "好 👩"


@pytest.mark.parametrize("words", [("recipes", "好"), ("describe", "好.csv")], ids=" ".join)
def test_in_the_c_locale(words: tuple[str, ...], tmp_path: Path) -> None:
    """Where Python takes arguments, file names and output for ASCII, if it is told to."""
    (tmp_path / "好.csv").write_text("text,label\n电影,好\n", encoding="utf-8")
    command = [sys.executable, "-m", "pretune", *words]
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    said = (done.stdout + done.stderr).decode()
    assert "Traceback" not in said
    assert "好" in said


class TestNames:
    @pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\nb/c"])
    def test_of_new_files_and_folders_hold_no_line_ends(
        self, name: str, model: Path, table: Path
    ) -> None:
        place = table.parent / name
        train = ("train", table, f"model.from={model}", f"output={place}")
        for words in (("convert", model, place), ("init", "classify", "-o", place)):
            refused(run(*words), "a new name may hold no line ends", "Choose another name")
        # What YAML does not read is refused before.
        refused(run(*train), "not valid YAML" if "\x1b" in name else "a new name may hold no")
        assert [*table.parent.iterdir()] == [table]

    def test_that_are_there_are_used(self, model: Path, tmp_path: Path) -> None:
        place = tmp_path / "a\nb"
        place.mkdir()
        assert run("convert", model, place / "c").exit_code == 0


def test_notes_are_sentences_on_standard_error(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    (folder / "manifest.json").unlink(missing_ok=True)
    path = folder / "model.safetensors"
    tensors = {f"module.{name}": value for name, value in load_file(path).items()}
    save_file({**tensors, "module.bert.adapter.weight": torch.zeros(2)}, path)
    for arguments in (("predict", folder, "the film", "--json"), ("inspect", folder, "--json")):
        done = run(*arguments)
        assert done.exit_code == 0, done.output
        notes = done.stderr.splitlines()
        assert notes[0].startswith(f"note: {path}: names are read without")
        assert [note for note in notes if not note.startswith("note: ")] == []
        if arguments[0] == "predict":
            assert len(notes) == 2
            assert "module.bert.adapter.weight" in notes[1]
        json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "runs/mrcp", "text"),
        ("evaluate", "runs/mrcp", "c.csv"),
        ("generate", "runs/mrcp", "--prompt", "text"),
        ("embed", "runs/mrcp", "c.csv", "--output", "v.npy"),
        ("inspect", "no-such-run"),
    ],
)
def test_a_model_that_was_an_argument_is_not_answered_by_a_key_of_recipes(
    arguments: tuple[str, ...], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (table.parent / "runs" / "mrpc").mkdir(parents=True)
    monkeypatch.chdir(table.parent)
    done = run(*arguments)
    refused(done, "no such folder")
    assert "model.from=" not in done.stderr
    if "runs/mrcp" in arguments:
        assert "Did you mean 'runs/mrpc'?" in done.stderr


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ((b"caf\xe9",), "TEXT: the byte 0xe9, at character 4, is not UTF-8"),
        ((b"caf", b"\xff"), "TEXT 2: the byte 0xff, at character 1"),
        (("--question", b"\x80", "--context", "a"), "--question: the byte 0x80"),
    ],
)
def test_an_argument_that_is_not_utf_8_is_named(options: tuple[Any, ...], place: str) -> None:
    given = [os.fsdecode(option) for option in options]
    done = CliRunner().invoke(app, ["predict", "no-such-run", *given], env={"COLUMNS": "100"})
    assert done.exit_code == 2
    assert place in done.stderr
    assert "surrogate" not in done.stderr


@pytest.mark.parametrize(("word", "whole"), [("electra", "an electra"), ("bert", "a bert")])
def test_a_word_has_its_article(word: str, whole: str) -> None:
    assert with_article(word) == whole
