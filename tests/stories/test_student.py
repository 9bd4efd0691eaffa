"""A student in Chinese: the lessons on BERT and GPT, with small models and few updates.

What is on the screen is Chinese; data, keys and metrics stay as they are.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from pathlib import Path

import pytest

from tests.stories.terminal import Seen, type_in

pytestmark = pytest.mark.slow

BERT = ("model.from=minilm", "model.layers=[0]", "task.max_length=96", "--batch-size", 4)
GPT = ("model.config={n_layer: 1, n_embd: 32, n_head: 2, n_positions: 64}", "task.max_length=32")
FEW = ("train.max_steps=3", "train.warmup=1", "train.eval_every=3")


def study(folder: Path, *words: object, lines: str = "", code: int = 0) -> Seen:
    return type_in(folder, *words, language="zh", lines=lines, code=code)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """The folder of the student, with small parts of the data."""
    folder = tmp_path_factory.mktemp("desk")
    for name, rows in (("train", 24), ("dev", 12)):
        text = (data_folder / "mrpc" / f"{name}.tsv").read_text(encoding="utf-8")
        lines = text.split("\n")[: rows + 1]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    articles = json.loads((data_folder / "squad/dev-v1.1.json").read_text(encoding="utf-8"))["data"]
    for name, some in (("learn", articles[:3]), ("exam", articles[3:5])):
        # One passage of each article, with two questions.
        parts = [own["paragraphs"][0] for own in some]
        passages = [{"context": own["context"], "qas": own["qas"][:2]} for own in parts]
        data = [{"title": name, "paragraphs": [passage]} for passage in passages]
        (folder / f"{name}.json").write_text(json.dumps({"version": "1.1", "data": data}))
    novel = (data_folder / "classics-zh/红楼梦.txt").read_text(encoding="utf-8")
    (folder / "红楼梦.txt").write_text(novel[:4000], encoding="utf-8")
    talks = (data_folder / "chitchat-zh/lccc.jsonl").read_text(encoding="utf-8").split("\n")
    (folder / "对话.jsonl").write_text("\n".join(talks[:60]) + "\n", encoding="utf-8")
    return folder


def test_do_two_sentences_mean_the_same(desk: Path) -> None:
    data = ("data.train=train.tsv", "data.validation=dev.tsv")
    seen = study(desk, "train", "mrpc", *BERT, *data, "train.max_steps=2")
    for part in ("train：24 条，来自 train.tsv", "共 2 次更新", "最好的模型（", "│更新次数 "):
        assert part in seen.out + seen.err
    assert "提问：  pretune predict runs/mrpc TEXT TEXT" in seen.out
    assert seen.english() == []
    # The same folder with other values is refused, and said which.
    seen = study(desk, "train", "mrpc", *BERT, *data, "train.max_steps=4", code=2)
    assert "里面已有另一份配方的已完成的运行" in seen.err
    assert "  train.max_steps：那里是 2，现在是 4" in seen.err.splitlines()
    assert seen.english() == []


def test_a_wrong_value_is_told_in_chinese(desk: Path) -> None:
    seen = study(desk, "train", "mrpc", "--epochs", "viele", "train.batch_size=0", code=2)
    assert "train.epochs：" in seen.err
    assert "train.batch_size：应大于或等于 1（现在是 0）" in seen.err
    assert seen.english() == []


def test_messages_in_gb18030_with_columns_of_other_names(desk: Path) -> None:
    """Every kind of doubt about a table of short messages is told in Chinese."""
    kinds = {"退款": "我要退第{}件", "物流": "第{}天没到", "账户": "登录失败{}次"}
    rows = [f"{text.format(n)},{kind},{n}" for n in range(40) for kind, text in kinds.items()]
    rows += [",退款,98", "好,其他,99", "我要退第3件,物流,100", "ok,vip,1", "yes,VIP,2", "yes,VIP,3"]
    (desk / "工单.csv").write_text("\n".join(["内容,类别,编号", *rows]), encoding="gb18030")
    seen = study(desk, "train", "工单.csv", code=2)
    assert "可能是中文文本，编码为 GB18030：data.encoding=gb18030" in seen.err
    model = ("model.from=minilm", "model.layers=[0]", "train.max_steps=2")
    own = ("data.encoding=gb18030", "task.max_length=16", *model)
    trained = study(desk, "train", "工单.csv", *own, "--folds", 2)
    for part in (
        "“内容”读作 text, “类别”读作 label",
        "可供学习的记录很少的标签：",
        "在不同的记录里标签不同：第 ",
        "这些标签只在大小写、空格或数字的写法上不同：'VIP'",
        "进一步查看：pretune describe",
        "被跳过：",
        "留出：第 2 份，共 2 份",
    ):
        assert part in trained.out + trained.err, part
    looked = study(desk, "describe", "工单.csv", "--encoding", "gb18030")
    assert re.search(r"第 \d+ 行：2 次（.+ 1x, .+ 1x）", looked.out)
    assert "│最短 " in looked.out
    assert "│ line " not in looked.out
    for own_seen in (seen, trained, looked):
        assert own_seen.english() == []


def test_an_excel_workbook_is_refused_in_chinese(desk: Path) -> None:
    with zipfile.ZipFile(desk / "工单.xlsx", "w") as file:
        file.writestr("[Content_Types].xml", "")
    seen = study(desk, "train", "工单.xlsx", code=2)
    assert "工单.xlsx：是 Excel 工作簿" in seen.err
    assert "请用电子表格软件打开，另存为 CSV（UTF-8）。" in seen.err
    assert seen.english() == []


def test_squad_before_and_after(desk: Path) -> None:
    data = ("data.train=learn.json", "data.validation=exam.json")
    words = ("train", "squad", *BERT, "task.doc_stride=16", *data)
    before = study(desk, *words, "train.max_steps=0", "output=runs/before")
    assert "验证数据上最好的模型（训练前）" in before.out
    after = study(desk, *words, *FEW, "--lr", "1e-3", "output=runs/after")
    assert "验证数据上最好的模型（3 次更新后）" in after.out
    losses = [float(re.findall(r"│loss +│ +(\d+\.\d+)│", own.out)[0]) for own in (before, after)]
    compared = study(desk, "compare", "runs/before", "runs/after")
    # The figures of the table are those that the trainings showed.
    (row,) = re.findall(r"│loss +│ (\d\.\d+) .*│ (\d\.\d+) .*│", compared.out)
    assert [float(own) for own in row] == losses
    assert losses[1] < losses[0]
    assert "runs/after 减 runs/before" in compared.out
    for seen in (before, after, compared):
        assert seen.english() == []


def test_a_novel_writer(desk: Path) -> None:
    seen = study(desk, "train", "novel-zh", *GPT, *FEW, "--batch-size", 2, "data.train=红楼梦.txt")
    assert "留出每篇文本末尾的 0.1" in seen.err
    assert "提问：  pretune generate runs/novel-zh --prompt TEXT" in seen.out
    written = study(
        desk, "generate", "runs/novel-zh", "--prompt", "宝玉", "--max-new-tokens", 8, "--seed", 1
    )
    assert written.out.startswith("宝玉")
    assert len(written.out.strip()) > len("宝玉")
    assert seen.english() + written.english() == []


def test_chit_chat(desk: Path) -> None:
    own = ("model.tokenizer=null", "model.train_tokenizer={kind: wordpiece, vocab_size: 900}")
    data = ("data.train=对话.jsonl", "data.validation=0.1")
    seen = study(desk, "train", "chat-zh", *GPT, *FEW, *own, *data, "train.batch_tokens=256")
    assert "对话.jsonl：没有用到的列：source" in seen.err
    assert re.search(r"其中 \d+ 条有一轮长于 32 个词元的窗口，已截断", seen.err)
    assert "提问：  pretune chat runs/chat-zh" in seen.out
    talked = study(desk, "chat", "runs/chat-zh", lines="你好\n今天天气怎么样？\n")
    assert len(talked.out.strip().split("\n")) == 2
    assert seen.english() + talked.english() == []


def test_the_rows_of_the_lesson_are_those_of_the_file(desk: Path) -> None:
    """What was cut for the lesson is read as it lies there, quotes and all."""
    seen = study(desk, "describe", "dev.tsv", "--json")
    with (desk / "dev.tsv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]
    assert json.loads(seen.out)["files"][0]["rows"] == len(rows) == 12
