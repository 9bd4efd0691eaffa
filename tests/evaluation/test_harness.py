"""lm-evaluation-harness with our models, beside its own `hf` model on the same checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="needs pretune[harness]")
# Before anything else imports it: it reads transformers' own names.
from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from pretune.bundle.bundle import load, save  # noqa: E402
from pretune.errors import PretuneError  # noqa: E402
from pretune.evaluation.harness import HarnessModel, decoding_of  # noqa: E402
from tests.inference.conftest import CONTEXT, Pair  # noqa: E402

TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{text}} It was"
doc_to_target: label
doc_to_choice: ["bad", "very good"]
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "tiny_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
""",
    "tiny_generate": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{label}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 8}
metric_list:
  - metric: exact_match
""",
}
ROWS = [
    {"text": "The film was good.", "label": 1},
    {"text": "bad models wrote stories, small stories", "label": 0},
    {
        "text": "Once upon a time there was 中国电影 — naïve café and a very long text " * 2,
        "label": 1,
    },
    {"text": "a", "label": 0},
]


@pytest.fixture(scope="module")
def folder(bpe: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that we wrote."""
    made = tmp_path_factory.mktemp("saved")
    save(load(bpe.folder), made)
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return HarnessModel(folder, device="cpu", batch_tokens=200)


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    return HFLM(pretrained=str(folder), device="cpu", batch_size=1)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files with local data."""
    made = tmp_path_factory.mktemp("tasks")
    data = made / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    for name, text in TASKS.items():
        head = f"task: {name}\ndataset_path: json\ntest_split: test\n"
        head += f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (made / f"{name}.yaml").write_text(head + text, encoding="utf-8")
    return made


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def results(model: Any, tasks: Path) -> Any:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(
        model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0
    )


@pytest.mark.filterwarnings("ignore:.*prompts have more than")
def test_tasks_give_the_figures_of_the_harnesss_own_model(ours: Any, hf: Any, tasks: Path) -> None:
    found, expected = results(ours, tasks), results(hf, tasks)
    for name in TASKS:
        for key, value in expected["results"][name].items():
            if isinstance(value, float):
                assert found["results"][name][key] == pytest.approx(value, rel=1e-4), (name, key)
        for mine, theirs in zip(found["samples"][name], expected["samples"][name], strict=True):
            _same(mine["resps"], theirs["resps"])


def _same(found: Any, expected: Any) -> None:
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _same(one, other)
    else:
        assert found == expected


CONTEXTS = [
    ("The film was", " good"),
    ("The film was ", "good, the film was bad"),
    ("", "The film"),
    ("", "<|endoftext|>The film"),
    ("中国", "电影"),
    ("a\n\n", "b"),
    ("The small model wrote stories. " * 9, " good film"),  # longer than the context
]


@pytest.mark.filterwarnings("ignore:1 of 7 prompts have more than 48 tokens")
def test_log_likelihoods_are_those_of_the_harnesss_own_model(ours: Any, hf: Any) -> None:
    asked = requests(*CONTEXTS)
    found, expected = (m.loglikelihood(asked, disable_tqdm=True) for m in (ours, hf))
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
    assert [one[1] for one in found] == [one[1] for one in expected]


def test_what_is_left_out_is_said(ours: Any) -> None:
    with pytest.warns(UserWarning, match=f"1 of 7 prompts have more than {CONTEXT} tokens"):
        ours.loglikelihood(requests(*CONTEXTS), disable_tqdm=True)


@pytest.mark.parametrize("words", [1, 11, 12, 13, 40])
def test_windows_of_long_texts_are_those_of_the_harness(ours: Any, hf: Any, words: int) -> None:
    asked = requests(("The film was good; " * words,), ("",))
    found, expected = (m.loglikelihood_rolling(asked, disable_tqdm=True) for m in (ours, hf))
    assert found == pytest.approx(expected, abs=1e-3, rel=1e-6)


def test_generated_texts_are_those_of_the_harnesss_own_model(ours: Any, hf: Any) -> None:
    how = {"until": ["th", "\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = requests(("The film", how), ("中国", {**how, "max_gen_toks": 5}), ("a", dict(how)))
    found, expected = (m.generate_until(asked, disable_tqdm=True) for m in (ours, hf))
    # Half a character at the end is not shown by us.
    whole = [[text.rstrip("\ufffd") for text in texts] for texts in (found, expected)]
    assert whole[0] == whole[1]
    assert all(whole[0])


def test_a_prompt_leaves_room_for_what_is_generated(ours: Any) -> None:
    with pytest.raises(PretuneError, match="256 tokens to generate leave no room"):
        ours.generate_until(requests(("a", {})), disable_tqdm=True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"temperature": 0, "max_new_tokens": 256}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {"temperature": 0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True}, {"temperature": 1.0, "top_p": 1.0}),
        ({"num_beams": 3, "max_tokens": 5}, {"beams": 3, "max_new_tokens": 5}),
        ({"until": "a"}, {"stop": ("a",)}),
        ({"until": ["a", ""]}, {"stop": ("a",)}),
    ],
)
def test_generation_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    decoding = decoding_of(options)
    assert {name: getattr(decoding, name) for name in expected} == expected


def test_an_unknown_generation_option_is_refused() -> None:
    with pytest.raises(PretuneError, match="guidance_scale has no counterpart"):
        decoding_of({"guidance_scale": 2})


def test_the_harnesss_command_line_finds_it(folder: Path, ours: Any) -> None:
    """Through the registry, with the arguments that `lm_eval run` hands over."""
    given = {"batch_size": "auto", "max_batch_size": None, "device": "cpu"}
    made = get_model("pretune").create_from_arg_string(
        f"pretrained={folder},batch_tokens=64", given
    )
    asked = requests(("The film was", " good"))
    found = [model.loglikelihood(asked, disable_tqdm=True)[0] for model in (made, ours)]
    assert found[0] == pytest.approx(found[1])
