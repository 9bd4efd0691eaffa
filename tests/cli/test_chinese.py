"""The command line in Chinese, as a person uses it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.text.spoken_language import speaking


def run(*arguments: Any, language: str = "zh") -> Any:
    with speaking(language):
        return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_the_list_of_commands() -> None:
    shown = run("--help").output
    for part in ("用法：", "选项", "训练", "显示此帮助并退出", "按配方训练或微调模型"):
        assert part in shown
    # What typer says itself is English again for the next person.
    assert "Options" in run("--help", language="en").output


def test_the_help_of_a_command() -> None:
    shown = run("train", "--help").output
    assert "示例：" in shown
    assert "[默认：" in shown
    assert "pretune train" in shown


@pytest.mark.parametrize("command", ["prepare", "embed", "tokenizer"])
def test_no_sentence_of_a_help_page_is_cut(command: str) -> None:
    # A Chinese sentence has no spaces: what lays out tables took it for a word too long to show.
    with speaking("zh"):
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "100"}).output
    assert not re.search("(?<!…)… *│", shown)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["tarin"], ("没有命令 'tarin'", "是不是想写 'train'")),
        (["train", "--nothing"], ("没有选项：--nothing", "用法：")),
        (["report"], ("缺少参数 'RUN'",)),
        (["describe", "none.csv"], ("错误：none.csv",)),
    ],
)
def test_mistakes(arguments: list[str], parts: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    for part in parts:
        assert part in done.stderr


def test_data_and_json_stay_as_they_are(tmp_path: Path) -> None:
    rows = ["text\tlabel", *(f"words {n}\tmissing" for n in range(4)), "other\tlabel"]
    data = tmp_path / "rows.tsv"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    shown = run("describe", data)
    assert shown.exit_code == 0, shown.output
    # A label may be called as one of our words.
    for part in ("5 行", "│missing ", "│label ", "重复较早文本的行"):
        assert part in shown.stdout
    told = [run("describe", data, "--json", language=own).stdout for own in ("zh", "en")]
    assert json.loads(told[0]) == json.loads(told[1])


def test_every_wrong_value_of_a_recipe() -> None:
    wrong = ("train.batch_size=0", "train.clip=true", "train.schedule=cos", "train.lr=1")
    done = run("train", "mrpc", *wrong)
    assert done.exit_code == 2
    for line in (
        "  train.batch_size：应大于或等于 1（现在是 0）",
        "  train.clip：应为数，而不是 true 或 false（现在是 True）",
        "  没有“train.lr”这个键。是不是想写“train.learning_rate”？",
    ):
        assert line in done.stderr.splitlines()
    assert "train.schedule：应为 'linear'" in done.stderr


def test_a_language_that_is_not_spoken(tmp_path: Path) -> None:
    told = {"PRETUNE_LANG": "de", "COLUMNS": "200"}
    done = CliRunner().invoke(app, ["runs", str(tmp_path)], env=told)
    assert "PRETUNE_LANG=de: no such language; there are en and zh" in done.stderr
    assert "no runs in" in done.stdout


def test_a_recipe_to_start_from() -> None:
    assert "\n  # 学习率的峰值。\n" in run("init", "classify").stdout
    # In a shell of another encoding `> recipe.yaml` would write what nobody reads as UTF-8.
    with speaking("zh"):
        plain = CliRunner(charset="gbk").invoke(app, ["init", "classify"])
    assert plain.stdout_bytes.isascii()
