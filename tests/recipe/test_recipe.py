from __future__ import annotations

import gzip
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from rich.cells import cell_len

from pretune.corpus.store import CORPUS_MANIFEST
from pretune.errors import DataError, RecipeError
from pretune.recipe import yaml12
from pretune.recipe.commented import commented_recipe
from pretune.recipe.recipe import (
    ADDED_RECIPES,
    Recipe,
    builtin_recipes,
    named_recipes,
    parse_override,
)
from pretune.tasks.base import TaskOptions
from pretune.tasks.builtin import TASKS
from pretune.text.spoken_language import speaking
from tests.plugins import forget_plugins, install_plugin

SMALL = {"task": {"name": "classify"}, "data": {"train": "a.tsv"}}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml12.dump(SMALL), encoding="utf-8")
    return path


class TestReading:
    def test_defaults_are_filled_in(self) -> None:
        recipe = Recipe.of(SMALL)
        assert recipe.train.batch_size == 32
        assert recipe.model.source == "minilm"
        assert recipe.to_dict()["model"]["from"] == "minilm"

    def test_a_task_may_be_only_its_name(self) -> None:
        assert Recipe.of({**SMALL, "task": "classify"}) == Recipe.of(SMALL)

    def test_numbers_among_labels_are_texts(self) -> None:
        recipe = Recipe.of({**SMALL, "task": {"name": "classify", "labels": {0: "no", 1: "yes"}}})
        assert recipe.to_dict()["task"]["labels"] == {"0": "no", "1": "yes"}

    def test_a_token_budget_replaces_the_batch_size(self) -> None:
        train = Recipe.of({**SMALL, "train": {"batch_tokens": 100}}).train
        assert (train.batch_size, train.batch_tokens) == (None, 100)

    @pytest.mark.parametrize("name", builtin_recipes())
    def test_built_in_ones_are_valid_and_described(self, name: str) -> None:
        recipe = Recipe.load(name)
        assert recipe.description
        assert recipe.output == f"runs/{name}"
        own = "data.train=book.txt" in recipe.description
        assert own == (recipe.data.train == "book.txt")
        assert own or "/" in recipe.data.train, "other data is public, and named by its Hub id"

    def test_a_data_file_is_enough(self, tmp_path: Path) -> None:
        path = tmp_path / "mail.csv"
        path.write_text("text,label\na,b\n", encoding="utf-8")
        recipe = Recipe.load(path)
        assert recipe.data.train == str(path)
        assert recipe.output == "runs/mail"
        assert not recipe.to_dict()["task"]["pair"]

    def test_a_packed_data_file_is_enough(self, tmp_path: Path) -> None:
        path = tmp_path / "mail.csv.gz"
        path.write_bytes(gzip.compress(b"text,label\na,b\n"))
        recipe = Recipe.load(path)
        assert (recipe.data.train, recipe.output) == (str(path), "runs/mail")

    def test_a_data_file_is_read_as_the_overrides_say(self, tmp_path: Path) -> None:
        path = tmp_path / "mail.csv"
        path.write_bytes("text,label\nMüller,b\n".encode("cp1252"))
        with pytest.raises(DataError, match=r"data\.encoding=cp1252"):
            Recipe.load(path)
        assert Recipe.load(path, ["data.encoding=cp1252"]).data.encoding == "cp1252"

    def test_columns_in_text_are_seen_to_be_tags(self, tmp_path: Path) -> None:
        path = tmp_path / "ok.txt"
        path.write_text("EU\tB-ORG\nrejects\tO\n", encoding="utf-8")
        assert Recipe.load(path).task.name == "tag"

    def test_plain_text_needs_a_task(self, tmp_path: Path) -> None:
        path = tmp_path / "novel.txt"
        path.write_text("It was a dark night: rain fell.\n", encoding="utf-8")
        with pytest.raises(RecipeError) as caught:
            Recipe.load(path)
        assert f"pretune train gpt2-pretrain data.train={path}" in str(caught.value)
        assert Recipe.load(path, ["task.name=causal_lm"]).data.train == str(path)
        with pytest.raises(RecipeError, match="plain text has no labels"):
            Recipe.load(tmp_path)  # a folder of text

    @pytest.mark.parametrize(
        ("columns", "commands"),
        [
            (["prompt", "chosen", "rejected"], ["dpo data.train=FILE", "reward data.train=FILE"]),
            (["chosen", "rejected"], ["dpo data.train=FILE", "reward data.train=FILE"]),
            (["prompt", "completion", "label"], ["dpo data.train=FILE task.loss=kto"]),
            (["prompt", "completion"], ["instruct data.train=FILE"]),
            (["instruction", "input", "output"], ["instruct data.train=FILE"]),
            (["conversations"], ["instruct data.train=FILE"]),
            (["id", "messages"], ["instruct data.train=FILE"]),
            (["source", "target"], ["translate data.train=FILE"]),
            (["sentence1", "sentence2", "score"], ["stsb data.train=FILE"]),
        ],
    )
    def test_data_for_another_kind_of_model_name_its_commands(
        self, tmp_path: Path, columns: list[str], commands: list[str]
    ) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(dict.fromkeys(columns, "x")) + "\n", encoding="utf-8")
        with pytest.raises(RecipeError, match="no task is named") as caught:
            Recipe.load(path)
        commands = [f"pretune train {rest.replace('FILE', str(path))}" for rest in commands]
        assert caught.value.hint == "; or ".join(commands)
        # A task that is named, or the columns of a classifier, decide.
        assert Recipe.load(path, ["task.name=instruct"]).task.name == "instruct"
        named = [f"data.columns.{name}={columns[0]}" for name in ("text", "label")]
        assert Recipe.load(path, named).task.name == "classify"

    @pytest.mark.parametrize(
        ("labels", "task"),
        [
            ([["a"], ["a", "b"], None], "multilabel"),
            ([[0, 1], [1, 1]], "multilabel"),
            (["['a']", "[]"], "multilabel"),
            (["a", ["a"]], "classify"),
            (["a", "b"], "classify"),
        ],
    )
    def test_lists_of_labels_are_for_multilabel(
        self, tmp_path: Path, labels: list[object], task: str
    ) -> None:
        path = tmp_path / "a.jsonl"
        rows = [json.dumps({"text": "x", "labels": own}) for own in labels]
        path.write_text("\n".join(rows), encoding="utf-8")
        assert Recipe.load(path).task.name == task
        assert Recipe.load(path, ["task.name=classify"]).task.name == "classify"
        assert Recipe.load(path, ["data.columns.labels=labels"]).task.name == "multilabel"

    @pytest.mark.parametrize(
        "text", ["text\tlabel\na b\tx\n", "text,label\na b,x\n", '{"text": "a", "label": "x"}\n']
    )
    def test_a_table_under_another_name_is_no_recipe(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "a.dat"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="cannot tell the format from the name"):
            Recipe.load(path)
        path.write_text(json.dumps(SMALL), encoding="utf-8")
        assert Recipe.load(path) == Recipe.of(SMALL)

    def test_a_recipe_may_end_in_txt(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.txt"
        path.write_text("# mine\n\n" + yaml12.dump(SMALL), encoding="utf-8")
        assert Recipe.load(path) == Recipe.of(SMALL)

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.xlsx", b"PK\x03\x04", "an Excel workbook"),
            ("a.pdf", b"%PDF-1.7", "a PDF file"),
            ("model", b"GGUF\x03", "a GGUF model"),
            ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "zstd -d"),
            ("a.yaml.txt", b"\x7fELF\0\0", "a program"),
        ],
    )
    def test_other_files_are_named(self, tmp_path: Path, name: str, content: bytes, said: str):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            Recipe.load(tmp_path / name)
        assert said in str(caught.value)

    def test_a_folder_of_a_run_is_no_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text(yaml12.dump(SMALL), encoding="utf-8")
        with pytest.raises(RecipeError, match=r"a folder, expected a recipe.*\n.*--resume"):
            Recipe.load(tmp_path)

    @pytest.mark.parametrize("version", [1, 2])
    def test_a_data_file_of_questions_is_seen_to_be_one(self, tmp_path: Path, version: int) -> None:
        item = {"id": "a", "question": "b", "answers": []}
        item |= {"is_impossible": True} if version == 2 else {}
        path = tmp_path / "qa.json"
        content = {"data": [{"paragraphs": [{"context": "c", "qas": [item]}]}]}
        path.write_text(json.dumps(content), encoding="utf-8")
        task = Recipe.load(path).to_dict()["task"]
        assert (task["name"], task["no_answer"]) == ("answer", version == 2)

    def test_a_data_file_of_pairs_is_seen_to_be_one(self, tmp_path: Path) -> None:
        path = tmp_path / "pairs.tsv"
        path.write_text("sentence1\tsentence2\tlabel\na\tb\t1\n", encoding="utf-8")
        assert Recipe.load(path).to_dict()["task"]["pair"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("r.yaml", b"- 1", "expected sections"),
            ("r.yaml", b"", "expected sections"),
            ("r.yaml", b"\xff\xfe", "not UTF-8"),
            ("r.yaml", b"task: [", "line 1"),
        ],
    )
    def test_other_files_are_errors(
        self, tmp_path: Path, name: str, content: bytes, message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecipeError, match=message):
            Recipe.load(tmp_path / name)

    @pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
    def test_a_name_that_no_file_can_have_is_none(self, name: str) -> None:
        with pytest.raises(RecipeError, match="no such recipe or file"):
            Recipe.load(name)

    def test_an_unknown_name_gets_the_nearest(self) -> None:
        with pytest.raises(RecipeError, match="Did you mean 'mrpc'"):
            Recipe.load("mrcp")


class TestCorpora:
    """A recipe by name names what goes with its own data; a corpus brings its own."""

    @pytest.fixture
    def corpus(self, tmp_path: Path) -> Path:
        for folder in (tmp_path / "corpus", tmp_path / "corpus" / "validation"):
            folder.mkdir()
            (folder / CORPUS_MANIFEST).write_text("{}")
        return tmp_path / "corpus"

    def test_bring_their_own(self, corpus: Path) -> None:
        recipe = Recipe.load("gpt2-pretrain", {"data.train": str(corpus)})
        assert recipe.model.tokenizer is None
        assert recipe.data.validation == str(corpus / "validation")
        (corpus / "validation" / CORPUS_MANIFEST).unlink()
        recipe = Recipe.load("gpt2-pretrain", [f"data.train={corpus}"])
        assert recipe.data.validation is None

    def test_what_a_person_wants_stays(self, corpus: Path) -> None:
        wishes = {"model.tokenizer": "tok", "data.validation": 0.1}
        recipe = Recipe.load("gpt2-pretrain", {"data.train": str(corpus), **wishes})
        assert (recipe.model.tokenizer, recipe.data.validation) == ("tok", 0.1)
        path = corpus / "mine.yaml"
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        assert Recipe.load(path) == recipe

    def test_other_data_change_nothing(self, tmp_path: Path) -> None:
        recipe = Recipe.load("gpt2-pretrain", {"data.train": str(tmp_path)})
        assert recipe.model.tokenizer == "openai-community/gpt2"
        assert recipe.data.validation == Recipe.load("gpt2-pretrain").data.validation


class TestPlugins:
    """Recipes that installed packages add."""

    CODE = """
        from pathlib import Path
        TEXT = "description: Mail.\\ntask: classify\\ndata: {train: mail.csv}\\n"
        def made():
            return TEXT.replace("Mail", "Post")
        FILE = Path(__file__).with_name("filed.yaml")
        GONE = Path(__file__).with_name("gone.yaml")
        """

    @pytest.fixture
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        names = {"mail": "TEXT", "post": "made", "filed": "FILE", "gone": "GONE", "mrpc": "TEXT"}
        lines = "\n".join(f"{name} = mail_recipes:{where}" for name, where in names.items())
        site = tmp_path / "site"
        site.mkdir()
        (site / "filed.yaml").write_text("task: regress\ndata: {train: a.csv}\n", encoding="utf-8")
        install_plugin(
            site,
            monkeypatch,
            "mail-recipes",
            textwrap.dedent(self.CODE),
            {"pretune.recipes": lines},
        )
        forget_plugins(ADDED_RECIPES)
        yield
        forget_plugins(ADDED_RECIPES)

    def test_are_loaded_by_name(self, installed: None) -> None:
        assert Recipe.load("mail").description == "Mail."
        assert Recipe.load("post", ["seed=2"]).description == "Post."
        assert Recipe.load("filed").task.name == "regress"

    def test_do_not_replace_built_in_ones(self, installed: None) -> None:
        assert Recipe.load("mrpc").description != "Mail."

    def test_without_their_file_are_errors_that_name_the_package(self, installed: None) -> None:
        with pytest.raises(RecipeError, match="the recipe 'gone' of mail-recipes cannot be read"):
            named_recipes()


class TestOverrides:
    def test_change_values(self, small: Path) -> None:
        recipe = Recipe.load(small, ["train.epochs=2", "model.from=x", "data.columns={text: body}"])
        assert recipe.train.epochs == 2
        assert recipe.model.source == "x"
        assert recipe.data.columns == {"text": "body"}

    def test_reach_into_mappings(self, small: Path) -> None:
        assert Recipe.load(small, ["data.columns.text=body"]).data.columns == {"text": "body"}

    def test_may_be_a_mapping(self, small: Path) -> None:
        assert Recipe.load(small, {"train.learning_rate": 1e-3}).train.learning_rate == 1e-3

    def test_do_not_change_the_recipe_they_start_from(self) -> None:
        recipe = Recipe.of(SMALL)
        assert recipe.changed(["seed=3"]).seed == 3
        assert recipe.seed == 0

    def test_do_not_change_the_values_they_are_given(self, small: Path) -> None:
        """A section that is given as a whole stays the caller's own, whatever is set in it."""
        columns = {"text": "body"}
        overrides = {"data.columns": columns, "data.columns.label": "kind"}
        recipe = Recipe.load(small, overrides)
        assert recipe.data.columns == {"text": "body", "label": "kind"}
        assert columns == {"text": "body"}

    @pytest.mark.parametrize("text", ["epochs", "=3", ""])
    def test_without_a_key_and_a_value_are_errors(self, small: Path, text: str) -> None:
        with pytest.raises(RecipeError, match="not an override"):
            Recipe.load(small, [text])

    def test_below_a_value_are_errors(self, small: Path) -> None:
        with pytest.raises(RecipeError, match=r"data\.train is 'a\.tsv'"):
            Recipe.load(small, ["data.train.x=1"])


class TestMistakes:
    @pytest.mark.parametrize("value", ["0x" + "f" * 100_000, "9" * 5000, "0o" + "7" * 2000])
    def test_a_number_of_too_many_digits(self, tmp_path: Path, value: str) -> None:
        path = tmp_path / "r.yaml"
        path.write_text(yaml12.dump(SMALL) + f"seed: {value}\n", encoding="utf-8")
        for source, overrides in ((path, []), ("mrpc", [f"seed={value}"])):
            with pytest.raises(RecipeError) as caught:
                Recipe.load(source, overrides)
            assert len(str(caught.value)) < 1000

    def test_a_value_of_too_many_digits_from_python(self) -> None:
        with pytest.raises(RecipeError, match=r"seed: .*thousands of digits"):
            Recipe.of({**SMALL, "seed": 1 << 100_000})

    def test_a_long_value_is_shortened(self) -> None:
        with pytest.raises(RecipeError) as caught:
            Recipe.of({**SMALL, "seed": "x" * 100_000})
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize(
        ("key", "right"),
        [
            ("train.epoch", "train.epochs"),
            ("trian", "train"),
            ("epochs", "train.epochs"),
            ("train.lr", "train.learning_rate"),
            ("model.max_length", "task.max_length"),
            ("train.per_device_train_batch_size", "train.batch_size"),
            ("task.lables", "task.labels"),
        ],
    )
    def test_a_wrong_key_gets_the_right_one(self, small: Path, key: str, right: str) -> None:
        with pytest.raises(RecipeError) as caught:
            Recipe.load(small, [f"{key}=1"])
        assert f"unknown key '{key}'. Did you mean '{right}'?" in str(caught.value)

    def test_a_wrong_key_like_none_gets_the_list(self, small: Path) -> None:
        with pytest.raises(RecipeError, match="Known here: from, layers, tokenizer, "):
            Recipe.load(small, ["model.zzzzzz=1"])

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("train.epochs=-1", "train.epochs: should be greater than 0 (it is -1)"),
            ("train.learning_rate=fast", "train.learning_rate: should be a valid number"),
            ("train.learning_rate=.nan", "finite"),
            ("data.validation=1.5", "less than 1 (it is 1.5)"),
            ("train.eval_every=0", "train.eval_every"),
            ("train.warmup=2.5", "whole number of updates"),
            ("task.max_length=1", "task.max_length"),
            ("task.labels=[a, ~]", "task.labels"),
            ("seed=-1", "seed"),
            ("data=~", "data"),
            ("task.name=clasify", "Did you mean 'classify'?"),
            ("task={pair: true}", "task.name is missing"),
            ("output=''", "output"),
            ("output=" + "a" * 300, "output: should be a folder"),
            ('output="\\0"', "output: should be a folder"),
            ("train.epochs=1e10", "train.epochs"),
            ("train.freeze={}", "train.freeze: should say how many layers"),
            ("train.guard={window: 1000000000000000000000}", "train.guard.window"),
            ("train.guard={margin: 1000000000000000000000}", "train.guard.margin"),
            ("train.guard={patience: 1000000000000000000000}", "train.guard.patience"),
            ("train.warmup=true", "train.warmup: should be a number"),
            ("train.batch_ramp={start: 1, updates: true}", "train.batch_ramp.updates"),
            ("task.name=[1]", "no task is called '[1]'"),
            ("task.name={a: 1}", "no task is called"),
            ("model.vocab_multiple=1000000000000", "model.vocab_multiple"),
            ("model.train_tokenizer={vocab_size: 1000000000000000000000}", "vocab_size"),
        ],
    )
    def test_a_wrong_value_is_named(self, small: Path, override: str, said: str) -> None:
        with pytest.raises(RecipeError) as caught:
            Recipe.load(small, [override])
        assert said in str(caught.value)

    def test_all_mistakes_are_named_at_once(self, small: Path) -> None:
        with pytest.raises(RecipeError) as caught:
            Recipe.load(small, ["train.epochs=0", "task.pairs=1"])
        assert "train.epochs" in str(caught.value)
        assert "task.pairs" in str(caught.value)

    def test_two_batch_sizes_are_refused(self, small: Path) -> None:
        with pytest.raises(RecipeError, match=r"not both: add train\.batch_tokens=null"):
            Recipe.load(small, ["train.batch_size=1", "train.batch_tokens=2"])

    @pytest.mark.parametrize(
        ("before", "asked", "size", "tokens"),
        [
            ("batch_tokens: 4096", "train.batch_size=4", 4, None),
            ("batch_size: 8", "train.batch_tokens=512", None, 512),
            ("batch_tokens: 4096", "train.batch_size=null", None, 4096),
            ("batch_tokens: 4096", "train.batch_tokens=null", 32, None),
        ],
    )
    def test_the_batch_size_that_is_asked_for_takes_the_place_of_the_other(
        self, tmp_path: Path, before: str, asked: str, size: int | None, tokens: int | None
    ) -> None:
        path = tmp_path / "r.yaml"
        path.write_text(f"task: classify\ndata: {{train: a.tsv}}\ntrain: {{{before}}}\n")
        for recipe in (Recipe.load(path, [asked]), Recipe.load(path).changed([asked])):
            assert (recipe.train.batch_size, recipe.train.batch_tokens) == (size, tokens)

    def test_missing_data_is_named(self) -> None:
        with pytest.raises(RecipeError, match=r"'data' is missing|'data.train' is missing"):
            Recipe.of({"task": "classify"})


def recipes() -> st.SearchStrategy[dict[str, Any]]:
    train = st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.floats(0.1, 100),
            "learning_rate": st.floats(1e-9, 1),
            "schedule": st.sampled_from(["linear", "cosine", "constant"]),
            "warmup": st.floats(0, 1) | st.integers(1, 1000),
            "clip": st.none() | st.floats(0.1, 10),
            "eval_every": st.just("epoch") | st.integers(1, 100),
            "batch_size": st.integers(1, 512),
        },
    )
    names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
    task = st.fixed_dictionaries(
        {"name": st.just("classify")},
        optional={
            "pair": st.booleans(),
            "labels": st.none()
            | st.lists(names, max_size=4)
            | st.dictionaries(names, names, max_size=4),
        },
    )
    data = st.fixed_dictionaries(
        {"train": names}, optional={"validation": names | st.none() | st.floats(0.01, 0.99)}
    )
    return st.fixed_dictionaries({"task": task, "data": data}, optional={"train": train})


@given(recipes())
def test_a_resolved_recipe_is_the_same_recipe(values: dict[str, Any]) -> None:
    recipe = Recipe.of(values)
    assert Recipe.of(yaml12.parse(recipe.to_yaml(), "x")) == recipe


@pytest.mark.parametrize("task", TASKS)
def test_the_commented_recipe_is_the_default_one(task: str) -> None:
    text = commented_recipe(task)
    plain = {"task": task, "data": {"train": "train.tsv"}, "output": f"runs/{task}"}
    assert Recipe.of(yaml12.parse(text, "x")) == Recipe.of(plain)
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) > 30, "every key is there"
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_commented_recipe_in_chinese() -> None:
    with speaking("zh"):
        texts = [commented_recipe(task) for task in TASKS]
    for task, text in zip(TASKS, texts, strict=True):
        assert yaml12.parse(text, "x") == yaml12.parse(commented_recipe(task), "x")
        comments = re.findall(r"# (.*)", text)
        assert comments[0].endswith("删掉即可。")
        assert all(cell_len(line) <= 100 for line in text.splitlines())
        assert not [line for line in comments if re.match(r"[，。）]", line)]
    assert "\n  # 学习率的峰值。\n  learning_rate: " in texts[0]


class _Required(TaskOptions):
    """Options of a task of somebody else's."""

    teacher: str = Field(description="The model to learn from.")
    sizes: tuple[int, ...] = Field((1, 2), description="What YAML has no word for.")


def test_an_option_without_a_default_is_left_for_the_person(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = type("Other", (), {"options_type": _Required})
    monkeypatch.setattr("pretune.recipe.commented.task_class", lambda name: other)
    text = commented_recipe("other")
    assert "  # The model to learn from.\n  teacher:  # must be given\n" in text
    assert yaml12.parse(text, "x")["task"]["sizes"] == [1, 2]


@pytest.mark.parametrize(
    "change", ["train.batch_size=1_0", "train.learning_rate=5_0e-5", "task.max_length='1_28'"]
)
def test_a_number_with_underscores_is_refused(change: str) -> None:
    with pytest.raises(RecipeError, match=r"a number is written without _ \(it is '"):
        Recipe.of(SMALL).changed([change])


@pytest.mark.parametrize("change", ["output=1_0", "data.validation=1_0", "task.labels=[1_0, b]"])
def test_a_text_may_have_underscores(change: str) -> None:
    assert "1_0" in str(Recipe.of(SMALL).changed([change]).to_dict())


@pytest.mark.parametrize("task", TASKS)
def test_a_wrong_recipe_is_answered_by_the_right_one_of_its_task(task: str) -> None:
    for section in (task, {"name": task}):
        with pytest.raises(RecipeError) as caught:
            Recipe.of({"task": section, "data": {"train": "x.tsv"}, "colour": "red"})
        assert caught.value.hint == (
            f"`pretune init {task}` writes a recipe with every key explained."
        )


def test_a_recipe_without_a_task_names_all(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- 1\n", encoding="utf-8")
    for make in (lambda: Recipe.of({"data": 3}), lambda: Recipe.load(tmp_path / "a.yaml")):
        with pytest.raises(RecipeError, match=r"pretune init TASK.*classify, .*tag"):
            make()


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("runs/a\nb", "runs/a\nb"),
        ("Be brief.\n\nBe kind.", "Be brief.\n\nBe kind."),
        ("run #2", "run #2"),
        (" runs/a ", "runs/a"),
        ("'a # b'", "a # b"),
        ('"a\\nb"', "a\nb"),
        ("|\n  a\n  b\n", "a\nb\n"),
        ("3", 3),
        ("null", None),
        ("[a,\n b]", ["a", "b"]),
        (",", ","),
        ("|", "|"),
        ("#", "#"),
        (" // ", "//"),
        ("-", "-"),
        ("~", None),
        ("{}", {}),
        ("''", ""),
        ("%s, %s", "%s, %s"),
        ("@home: here", "@home: here"),
    ],
)
def test_a_text_without_quotes_is_taken_as_typed(typed: str, value: object) -> None:
    assert parse_override(f"output={typed}") == ("output", value)


@pytest.mark.parametrize("typed", ["[a,", "{a: b", "'a", "*a"])
def test_a_list_that_is_not_closed_is_no_text(typed: str) -> None:
    with pytest.raises(RecipeError, match="override"):
        parse_override(f"output={typed}")
