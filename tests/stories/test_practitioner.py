"""A practitioner sorts the messages to a shop, which a spreadsheet wrote as it liked.

Semicolons between the columns and commas in the numbers, a byte-order mark, messages of several
lines, labels in two spellings, and rows that nobody filled in.
"""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import pytest

from tests.stories.terminal import Seen, type_in

TEXT, LABEL = "Nachricht des Kunden", "Kategorie"
HEADER = f"Kunden-Nr.;{TEXT};Betrag (€);{LABEL}"
MONEY = ("Das Geld ist noch nicht zurück", "Bitte erstatten Sie den Betrag", "Geld zurück")
PARCEL = ("Wo ist mein Paket", "Die Lieferung kommt nicht an", "Das Paket war offen")
#: Rows that are odd, and the lines that the tests name.
ODD = (
    'X1;"Das Geld bitte auf das alte Konto";3,50; Refund',
    'X2;"";3,50;refund',
    'X3;"Wo bleibt die Antwort auf meine Mail";3,50;refund',
    'X4;"Wo bleibt die Antwort auf meine Mail";3,50;delivery',
    'X5;"Ich bin Anwalt und klage";3,50;legal',
    'X6;"Hat noch niemand gelesen";3,50;',
    'X7;"Ein Feld zu viel";3,50;refund;und das',
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the person, with their table and the messages of today."""
    folder = tmp_path_factory.mktemp("desk")
    rows = [HEADER]
    for number in range(18):
        rows.append(f'A{number};"{MONEY[number % 3]}, Auftrag {number}";{number},50;refund')
        # Two lines of the file each, with a quote in quotes.
        rows.append(f'B{number};"{PARCEL[number % 3]}\n""Eilig"" {number}";{number},95;delivery')
    table = "\r\n".join([*rows, *ODD]) + "\r\n"
    (folder / "anfragen.csv").write_text(table, encoding="utf-8-sig", newline="")
    today = [
        HEADER,
        'C1;"Wo ist mein Paket?\nEs eilt";7,10;',
        'C2;"";8,00;',
        'C3;"Geld zurück; sofort";9,00;',
    ]
    text = "\r\n".join(today) + "\r\n"
    (folder / "heute.csv").write_text(text, encoding="utf-8-sig", newline="")
    return folder


@pytest.fixture(scope="module")
def trained(desk: Path) -> Seen:
    """The training that leaves out what cannot be used, as the first one advised."""
    return type_in(
        *(desk, "train", "anfragen.csv", "data.errors=skip", "--epochs", 2, "--lr", "1e-3"),
        *("model.layers=[0]", "task.max_length=24"),
    )


def test_a_look_at_the_table(desk: Path) -> None:
    seen = type_in(desk, "describe", "anfragen.csv")
    assert "anfragen.csv: read with semicolons between columns, not commas" in seen.err
    for column, role in ((TEXT, "text"), (LABEL, "label")):
        assert re.search(rf"│{column} +│.*│ {role} *│", seen.out), seen.out
    for odd, where in (
        ("rows without text", "line 57"),
        ("rows without a label", "line 61"),
        ("rows that repeat an earlier text", "line 58: 2 times"),
    ):
        assert re.search(rf"│{odd} +│ 1 │ {where}", seen.out), seen.out
    assert "'refund' (20), 'Refund' (1); if they are the same, correct the data" in seen.out


def test_the_first_training_names_every_row_that_cannot_be_used(desk: Path) -> None:
    seen = type_in(desk, "train", "anfragen.csv", "--output", "runs/first", code=2)
    assert seen.err.splitlines() == [
        "error: anfragen.csv: 2 of 43 records cannot be used:",
        f"  line 62: 5 fields, but the header names 4 ({HEADER.replace(';', ', ')})",
        f"  line 61, column '{LABEL}': no label there ('')",
        # A way out for each kind, and one for all of them.
        "  Put a text with semicolons in double quotes, or change how quotes are read: "
        "data.quoting=none",
        "  Give every record a label, or remove the record.",
        "  Or leave such records out, which is counted: data.errors=skip.",
        f"  To look at all of it: pretune describe anfragen.csv --text '{TEXT}' --label {LABEL}",
    ]
    assert not (desk / "runs").exists()


def test_training_says_what_it_read_and_what_it_doubts(trained: Seen) -> None:
    for line in (
        "anfragen.csv: 2 of 43 records were left out (data.errors=skip):",
        "anfragen.csv: columns not used: Kunden-Nr., Betrag (€)",
        "labels with few records to learn from: Refund (1), legal (1)",
        "1 text has different labels in different records: line 58 and line 59",
        "  anfragen.csv, line 57: an empty text",
    ):
        assert line in trained.err.splitlines()
    assert '\'task.labels={"Refund": "refund"' in trained.err
    assert re.search(r"│left out of train +│ +2 records│", trained.out)
    assert "pretune predict runs/anfragen TEXT" in trained.out


@pytest.mark.usefixtures("trained")
def test_a_table_of_answers_has_the_columns_of_the_table(desk: Path) -> None:
    told = ("predict", "runs/anfragen", "--file", "heute.csv", "--output", "antworten.csv")
    seen = type_in(desk, *told)
    assert "wrote antworten.csv: 3 rows with their answers" in seen.err
    assert "1 blank line or text: answered too, so that answers stay in line" in seen.err
    with (desk / "antworten.csv").open(encoding="utf-8", newline="") as file:
        names, *rows = csv.reader(file)
    assert names == [*HEADER.split(";"), "label", "score"]
    given = [["C1", "Wo ist mein Paket?\nEs eilt", "7,10", ""], ["C2", "", "8,00", ""]]
    assert [row[:4] for row in rows] == [*given, ["C3", "Geld zurück; sofort", "9,00", ""]]
    assert {row[4] for row in rows} <= {"refund", "delivery", "Refund", "legal"}
    # What was written once is not written over by accident.
    assert "exists already" in type_in(desk, *told, code=2).err


@pytest.mark.usefixtures("trained")
def test_the_words_that_an_answer_hangs_on(desk: Path) -> None:
    seen = type_in(desk, "predict", "runs/anfragen", "Wo ist mein Paket?", "--explain")
    shares = [float(part) for part in re.findall(r"(\d+\.\d)%", seen.out)]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert re.search(r"(?m)^  for it +\S", seen.out)
    assert re.search(r"(?m)^  against it +\S", seen.out)


@pytest.mark.usefixtures("trained")
def test_the_report_begins_with_how_many_are_right(desk: Path) -> None:
    seen = type_in(desk, "report", "runs/anfragen", "--explain", 1)
    assert "wrote runs/anfragen/report.html (4 examples" in seen.out
    page = (desk / "runs/anfragen/report.html").read_text(encoding="utf-8")
    drawn = re.sub(r"(?s)<(script|style|svg).*?</\1>", "", page)
    words = " ".join(html.unescape(re.sub("<[^>]+>", " ", drawn)).split())
    assert re.search(r"anfragen: report (\d of 4 right \(\d+\.0%\)[;,.])", words), words[:300]
    assert "2 records of anfragen.csv were left out (data.errors=skip)" in words


@pytest.mark.usefixtures("trained")
def test_what_to_label_next_is_no_empty_message(desk: Path) -> None:
    seen = type_in(desk, "rank", "runs/anfragen", "heute.csv")
    assert "1 record has no text to label: last in the order" in seen.err
    lines = re.findall(r"(?m)^│ +(\d+) │", seen.out)
    assert sorted(lines[:2]) == ["2", "5"]
    assert lines[2:] == ["4"]


@pytest.mark.usefixtures("trained")
def test_the_list_of_runs(desk: Path) -> None:
    (row,) = (line for line in type_in(desk, "runs").out.splitlines() if "runs/anfragen" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:5] == ["runs/anfragen", "finished", "classify", "minilm", "anfragen.csv"]
    assert re.fullmatch(r"accuracy \d\.\d{4}", cells[5])
