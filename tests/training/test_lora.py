"""LoRA: beside peft, resumed, saved in peft's layout and merged."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pretune.bundle.bundle import ADAPTER, load
from pretune.checkpoints.peft import fill_adapter, save_adapter
from pretune.data.batch import PackedBatch
from pretune.decoding.continuations import Prompt
from pretune.decoding.decoding import Decoding
from pretune.decoding.writer import Writer
from pretune.errors import CheckpointError, RecipeError, RunError
from pretune.models.heads.language import ActorCritic
from pretune.models.lora import (
    TARGETS,
    adapters,
    add_lora,
    kept_sums,
    learned_rows,
    merged_state,
    without_adapters,
)
from pretune.recipe.recipe import Recipe
from pretune.tasks.dialogue.dialogue import Instruct
from pretune.training.adapters import check_lora
from pretune.training.checkpoint import checkpoints
from pretune.training.run import resume, train_recipe
from tests.inference.conftest import Pair, bpe
from tests.tasks.alignment.preferences import answering
from tests.tasks.dialogue.test_instruct import TALKS, messages

__all__ = ["bpe"]  # a fixture

IDS = [[5, 9, 2, 7, 7, 30], [1, 4, 8]]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(PackedBatch.of(IDS))
    return found


def theirs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([ids])).logits[0] for ids in IDS])


@pytest.mark.parametrize(
    ("targets", "new"), [(TARGETS[:1], range(0)), (TARGETS, range(0)), (TARGETS, range(5, 9))]
)
def test_an_adapter_is_pefts_there_and_back(
    bpe: Pair, tmp_path: Path, targets: tuple[str, ...], new: range
) -> None:
    bundle = load(bpe.folder)
    before = logits(bundle.model)
    add_lora(bundle.model, 3, 6.0, targets, new)
    assert torch.equal(logits(bundle.model), before), "at first nothing is changed"
    for part in adapters(bundle.model).values():
        torch.nn.init.normal_(part.lora_b, std=0.1)
    for rows in learned_rows(bundle.model).values():
        torch.nn.init.normal_(rows.rows, std=0.3)
    mine = logits(bundle.model)
    assert not torch.allclose(mine, before, atol=1e-2)
    save_adapter(bundle.model, tmp_path / "a", bundle.family, "causal_lm", str(bpe.folder))
    base = transformers.GPT2LMHeadModel.from_pretrained(bpe.folder)
    opened = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    assert torch.allclose(theirs(opened), mine, atol=1e-4)
    # What peft writes is read, too.
    opened.save_pretrained(tmp_path / "b")
    again = load(bpe.folder)
    add_lora(again.model, 3, 6.0, targets, new)
    fill_adapter(again.model, tmp_path / "b", again.family, "causal_lm")
    assert torch.allclose(logits(again.model), mine, atol=1e-6)
    other = load(bpe.folder)
    add_lora(other.model, 2, 6.0, targets, new)
    with pytest.raises(CheckpointError, match=r"r=3, lora_alpha=6.0, but"):
        fill_adapter(other.model, tmp_path / "b", other.family, "causal_lm")
    other = load(bpe.folder)
    add_lora(other.model, 3, 6.0, targets, range(5, 8))
    with pytest.raises(CheckpointError, match=r"new tokens are \[5, 6, 7\]"):
        fill_adapter(other.model, tmp_path / "b", other.family, "causal_lm")
    merged = opened.merge_and_unload()
    plain = load(bpe.folder).model
    plain.load_state_dict(merged_state(bundle.model))
    assert torch.allclose(logits(plain), theirs(merged), atol=1e-4)


def test_a_head_of_values_goes_with_the_adapter(bpe: Pair, tmp_path: Path) -> None:
    """There and back, and in peft on a model that has such a head (as TRL names it)."""

    def critic() -> Any:
        bundle = load(bpe.folder)
        torch.manual_seed(3)
        model = ActorCritic(bundle.backbone).eval()
        add_lora(model, 3, 6.0, TARGETS[:1])
        return bundle, model

    bundle, model = critic()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"value.weight", "value.bias"} < learns
    assert all(".lora_" in name or name.startswith("value.") for name in learns)
    for name in learns:
        torch.nn.init.normal_(model.get_parameter(name), std=0.1)
    save_adapter(model, tmp_path / "a", bundle.family, "actor_critic", str(bpe.folder))
    base = transformers.GPT2LMHeadModel.from_pretrained(bpe.folder)
    base.v_head = torch.nn.Sequential()
    base.v_head.add_module("summary", torch.nn.Linear(bpe.theirs.config.n_embd, 1))
    opened = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    with torch.no_grad():
        _, mine = model(PackedBatch.of(IDS), labels=torch.zeros(9, dtype=torch.int64), each=True)
        hidden = [opened.base_model.model.transformer(torch.tensor([ids]))[0][0] for ids in IDS]
        found = opened.base_model.model.v_head.summary(torch.cat(hidden))[:, 0]
    assert torch.allclose(found, mine, atol=1e-4)
    opened.save_pretrained(tmp_path / "b")
    for folder in ("a", "b"):
        other, again = critic()
        fill_adapter(again, tmp_path / folder, other.family, "actor_critic")
        values = again.state_dict()
        assert all(torch.equal(own, values[name]) for name, own in model.state_dict().items())
    plain = load(bpe.folder)
    add_lora(plain.model, 3, 6.0, TARGETS[:1])
    with pytest.raises(CheckpointError, match=r"v_head\.summary"):
        fill_adapter(plain.model, tmp_path / "a", plain.family, "causal_lm")


@pytest.mark.parametrize("new", [range(0), range(5, 9)])
def test_gradients_are_pefts(bpe: Pair, new: range) -> None:
    bundle = load(bpe.folder)
    add_lora(bundle.model, 2, 4.0, TARGETS, new)
    base = transformers.GPT2LMHeadModel.from_pretrained(bpe.folder)
    names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    config = peft.LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=names,
        fan_in_fan_out=True,
        trainable_token_indices=list(new) or None,
    )
    other = peft.get_peft_model(base, config).eval()
    values = dict(other.named_parameters())
    paired = []
    for name, part in adapters(bundle.model).items():
        layer, ours = name.split(".")[2], ".".join(name.split(".")[3:])
        place = f"base_model.model.transformer.h.{layer}.{names[TARGETS.index(ours)]}"
        for letter, own in (("A", part.lora_a), ("B", part.lora_b)):
            twin = values[f"{place}.lora_{letter}.default.weight"]
            torch.nn.init.normal_(own, std=0.1)
            twin.data.copy_(own.data)
            paired.append((own, twin))
    for rows in learned_rows(bundle.model).values():
        # Of the rows 5 to 8 the text has 5 and 7, and 9 not; the output layer reads all of them.
        place = "base_model.model.transformer.wte.token_adapter.trainable_tokens_delta.default"
        paired.append((rows.rows, values[place]))
    bundle.model.eval()
    batch = PackedBatch.of(IDS[:1])
    labels = torch.tensor([*IDS[0][1:], 3])
    bundle.model(batch, labels=labels).sum.backward()
    found = other(torch.tensor(IDS[:1])).logits[0]
    torch.nn.functional.cross_entropy(found, labels, reduction="sum").backward()
    for own, twin in paired:
        assert own.grad is not None
        assert torch.allclose(own.grad, twin.grad, atol=1e-3, rtol=1e-3)
    learns = {id(p) for p in bundle.model.parameters() if p.requires_grad}
    assert learns == {id(own) for own, _ in paired}


@pytest.fixture
def recipe(bpe: Pair, tmp_path: Path) -> Recipe:
    data = tmp_path / "talk.jsonl"
    rows = [json.dumps({"messages": messages(talk[-2:])}) for talk in TALKS]
    data.write_text("\n".join(rows * 4) + "\n", encoding="utf-8")
    return Recipe.load(
        "instruct",
        {
            "data.train": str(data),
            "data.validation": str(data),
            "model.from": str(bpe.folder),
            "task.max_length": 48,
            "task.samples": 0,
            "train.lora": {"rank": 4, "targets": list(TARGETS)},
            "train.max_steps": 12,
            "train.eval_every": 6,
            "train.save_every": 4,
            "train.keep": 5,
            "train.learning_rate": 1e-2,
            "train.batch_size": 4,
            "train.batch_tokens": None,
            "train.warmup": 0,
            "train.device": "cpu",
            "output": str(tmp_path / "run"),
        },
    )


def test_only_the_adapter_learns_and_what_is_saved_is_whole(
    recipe: Recipe, bpe: Pair, tmp_path: Path
) -> None:
    train_recipe(recipe, quiet=True)
    folder = tmp_path / "run" / "last"
    plain = load(folder)
    assert not adapters(plain.model), "merged"
    base = transformers.GPT2LMHeadModel.from_pretrained(bpe.folder)
    opened = peft.PeftModel.from_pretrained(base, folder / ADAPTER).eval()
    assert torch.allclose(theirs(opened), logits(plain.model), atol=1e-4)
    whole = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    assert torch.allclose(theirs(whole), logits(plain.model), atol=1e-4)
    assert not torch.allclose(logits(plain.model), logits(bpe.bundle.model), atol=1e-2)
    old, new = bpe.bundle.model.state_dict(), plain.model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    expected = {name for name in old if name.endswith("weight") and any(t in name for t in TARGETS)}
    assert changed == expected


MARKS = ["<|im_start|>", "<|im_end|>"]


def test_new_tokens_learn(recipe: Recipe, bpe: Pair, tmp_path: Path) -> None:
    changes = {"model.new_tokens": MARKS, "task.template": "chatml", "model.vocab_multiple": 64}
    recipe = recipe.changed(changes)
    train_recipe(recipe, quiet=True)
    folder = tmp_path / "run" / "last"
    plain = load(folder)
    old = bpe.bundle.model.backbone.embeddings.tokens.weight
    new = plain.model.backbone.embeddings.tokens.weight
    assert len(new) % 64 == 0
    assert torch.equal(new[: len(old)], old), "what was known stays"
    first = [plain.tokenizer.engine.token_to_id(mark) for mark in MARKS]
    assert first == [len(old), len(old) + 1]
    # They began at the mean of the others, as what pads the table still is.
    assert (new[first] - new[-1]).abs().max() > 1e-2
    base = transformers.GPT2LMHeadModel.from_pretrained(bpe.folder)
    base.resize_token_embeddings(len(new))
    opened = peft.PeftModel.from_pretrained(base, folder / ADAPTER).eval()
    known = len(old) + len(MARKS)
    text = [*IDS[0], *first]
    with torch.no_grad():
        found = opened(torch.tensor([text])).logits[0]
        mine = plain.model.eval()(PackedBatch.of([text]))
    assert torch.allclose(found[:, :known], mine[:, :known], atol=1e-4)


@pytest.mark.parametrize("new", [[], MARKS])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    recipe: Recipe, tmp_path: Path, new: list[str]
) -> None:
    if new:
        recipe = recipe.changed({"model.new_tokens": new, "task.template": "chatml"})
    train_recipe(recipe, quiet=True)
    whole = load(tmp_path / "run" / "last").model.state_dict()
    other = recipe.changed({"output": str(tmp_path / "cut")})
    train_recipe(other, quiet=True)
    run = tmp_path / "cut"
    (run / "result.json").unlink()
    for step, path in checkpoints(run):
        if step > 4:
            shutil.rmtree(path)
    resume(run, quiet=True)
    again = load(run / "last").model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_an_adapter_goes_on_beside_the_weights_that_it_was_trained_beside(
    recipe: Recipe, bpe: Pair, tmp_path: Path
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(bpe.folder, base)
    train_recipe(recipe.changed({"model.from": str(base)}), quiet=True)
    (run / "result.json").unlink()
    for step, path in checkpoints(run):
        if step > 4:
            shutil.rmtree(path)
    weights = load_file(base / "model.safetensors")
    # One matrix that no adapter is beside, and the other way round.
    for name in ("transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"):
        changed = {**weights, name: weights[name] + 1e-3}
        save_file(changed, base / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RunError, match=f"trained with other weights than {base} has now"):
            resume(run, quiet=True)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert resume(run, quiet=True).metrics


def test_a_rank_that_no_matrix_has_is_refused_before_it_is_allocated(bpe: Pair) -> None:
    model = load(bpe.folder).model
    width = bpe.theirs.config.n_embd
    with pytest.raises(RunError, match=r"rank is 100,000,000,000, but 'attention.qkv'"):
        add_lora(model, 10**11, 6.0, TARGETS)
    with pytest.raises(RunError, match=f"of rank {width} at most"):
        add_lora(load(bpe.folder).model, width + 1, 6.0, TARGETS)
    add_lora(load(bpe.folder).model, width, 6.0, TARGETS)


def test_a_target_named_twice_counts_once(bpe: Pair) -> None:
    once, twice = load(bpe.folder).model, load(bpe.folder).model
    add_lora(once, 2, 4.0, TARGETS[:1])
    add_lora(twice, 2, 4.0, TARGETS[:1] * 2)
    assert list(adapters(twice)) == list(adapters(once))
    assert len(adapters(twice)) == bpe.theirs.config.n_layer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.from": "gpt2-small"}, "random weights have nothing"),
        ({"train.freeze": "embeddings"}, "Leave out train.freeze"),
        ({"train.lora": {"targets": ["attention"]}}, "attention.qkv"),
    ],
)
def test_where_it_makes_no_sense(recipe: Recipe, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_lora(recipe.changed(changes))
    assert said in str(caught.value)


@pytest.mark.parametrize("new", [range(0), range(5, 9)])
def test_what_is_kept_is_the_sum_of_that_moment(bpe: Pair, new: range) -> None:
    model = load(bpe.folder).model
    add_lora(model, 2, 4.0, TARGETS, new)
    parts = [*adapters(model).values(), *learned_rows(model).values()]
    for step in range(2):  # what was kept before does not stay
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        expected = logits(model)
        with kept_sums(model):
            assert all(part.weight is part.weight for part in parts), step
            assert torch.equal(logits(model), expected)
            with without_adapters(model):
                assert not torch.allclose(logits(model), expected, atol=1e-2)
        assert not any(part.weight is part.weight for part in parts)


def test_replies_are_written_with_kept_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = copy.deepcopy(answering())
    task = bundle.task
    assert isinstance(task, Instruct)
    task.bind(bundle.tokenizer)
    add_lora(bundle.model, 2, 4.0, TARGETS[:1])
    (part, *_), kept = adapters(bundle.model).values(), list[bool]()
    monkeypatch.setattr(Writer, "write", lambda *given: kept.append(part.weight is part.weight))
    task.written(bundle.model, torch.device("cpu"), [Prompt((), [1])], Decoding())
    assert kept == [True]


def test_without_its_adapters_a_model_is_its_base() -> None:
    """The frozen weights alone, also of tokens whose rows are learned."""
    model = copy.deepcopy(answering().model).eval()
    batch = PackedBatch.of([[1, 2, 290], [3, 291]])
    with torch.no_grad():
        base = model(batch)
        add_lora(model, 2, 4.0, ["attention.qkv", "feed_forward.up"], range(285, 292))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        adapted = model(batch)
        with without_adapters(model):
            assert torch.equal(model(batch), base)
        assert not torch.allclose(adapted, base, atol=1e-2)
        assert torch.equal(model(batch), adapted)


@pytest.mark.slow
def test_a_classifier_learns_its_head_and_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    """The head is new, learns as a whole, lies in the adapter, and comes back from there."""
    data = tmp_path / "texts.jsonl"
    rows = [{"text": f"{w} film", "label": w} for w in ("good", "bad")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 8), encoding="utf-8")
    recipe = Recipe.of(
        {
            "task": {"name": "classify", "max_length": 16},
            "data": {"train": str(data), "validation": str(data)},
            "model": {"from": str(tiny_folder)},
            "train": {
                "lora": {"rank": 2, "targets": ["attention.qkv", "feed_forward.down"]},
                "max_steps": 6,
                "save_every": 2,
                "keep": 5,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "device": "cpu",
            },
            "output": str(tmp_path / "whole"),
        }
    )
    train_recipe(recipe, quiet=True)
    train_recipe(recipe.changed({"output": str(tmp_path / "cut")}), quiet=True)
    run = tmp_path / "cut"
    (run / "result.json").unlink()
    for step, path in checkpoints(run):
        if step > 2:
            shutil.rmtree(path)
    resume(run, quiet=True)
    whole, again = (load(tmp_path / name / "last").model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    adapter = load_file(run / "last" / ADAPTER / "adapter_model.safetensors")
    assert {n for n in adapter if ".lora_" not in n} == {
        f"base_model.model.classifier.{kind}" for kind in ("weight", "bias")
    }
    base = load(tiny_folder, bare=True).model.state_dict()
    changed = {n for n, v in base.items() if not torch.equal(v, whole[f"backbone.{n}"])}
    assert changed
    assert all(n.endswith(("attention.qkv.weight", "feed_forward.down.weight")) for n in changed)
