"""Passes of few tokens: a function a layer gives what the layers give as modules."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.models import few_rows, kernels
from pretune.models.backbone import Backbone
from pretune.models.bert import BertConfig, BertModel
from pretune.models.distilbert import DistilBertConfig, DistilBertModel
from pretune.models.electra import ElectraConfig, ElectraModel
from pretune.models.gpt2 import Gpt2Config, Gpt2Model
from pretune.models.heads.language import CausalLM
from pretune.models.kernels import INFERENCE_KINDS, ROWS, Choice, ShapeClass
from pretune.models.llama import Qwen3Config, Qwen3Model
from pretune.models.lora import add_lora
from pretune.models.packed import packing
from pretune.models.products import BATCHED, INT_MM, TRANSPOSED

WIDTH, TOKENS = 24, 50
BERT = {"vocab_size": TOKENS, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES = {**BERT, "hidden_size": WIDTH, "intermediate_size": 40, "max_position_embeddings": 64}


def bert() -> Backbone:
    return BertModel(BertConfig(**SIZES))


def electra() -> Backbone:
    return ElectraModel(ElectraConfig(**SIZES, embedding_size=16))


def distilbert() -> Backbone:
    sizes = {"n_layers": 2, "n_heads": 3, "dim": WIDTH, "hidden_dim": 40}
    return DistilBertModel(DistilBertConfig(vocab_size=TOKENS, **sizes))


def qwen3() -> Backbone:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    some = {"hidden_size": WIDTH, "head_dim": 8, "intermediate_size": 40}
    windows = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
    return Qwen3Model(Qwen3Config(vocab_size=TOKENS, **sizes, **some, **windows))


def gpt2() -> Backbone:
    sizes = {"n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 3, "n_inner": 40}
    return Gpt2Model(Gpt2Config(vocab_size=TOKENS, **sizes))


FAMILIES = [bert, distilbert, electra, gpt2, qwen3]


def drawn(model: nn.Module) -> nn.Module:
    """The model with weights so large that every part of it shows."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, float("norm" in name and name.endswith("weight")), 0.2)
    return model.eval()


@pytest.fixture(autouse=True)
def transposed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products of weights that were prepared, however small they are."""
    monkeypatch.setattr(kernels, "SMALLEST", 0)
    sizes = [(WIDTH, out) for out in (WIDTH, 2 * WIDTH, 3 * WIDTH, 40)] + [(40, WIDTH)]
    kinds = dict(zip(INFERENCE_KINDS, (TRANSPOSED, INT_MM), strict=True))
    shapes = {
        ShapeClass(kind, rows, *size): kernel
        for kind, kernel in kinds.items()
        for rows in ROWS
        for size in sizes
    }
    with kernels.kept(Choice("measured", shapes)):
        yield


def batch_of(*lengths: int) -> PackedBatch:
    drawing = torch.Generator().manual_seed(sum(lengths))
    return PackedBatch.of(
        [torch.randint(TOKENS, (n,), generator=drawing).tolist() for n in lengths]
    )


def quick(model: Backbone) -> bool:
    """Whether the last pass was by functions."""
    made = list(model.few_rows._made.values())
    return bool(made) and made[-1].functions is not None


def check(model: Backbone, batch: PackedBatch, which: str | None = None) -> Tensor:
    """Compare with the layers as modules, and return the hidden states."""
    select = None if which is None else getattr(batch, which)
    with torch.inference_mode():
        wanted = model(batch, select=select).last_hidden_state
        with packing("float32"):
            got = model(batch, select=select).last_hidden_state
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-5)
    return got


@pytest.mark.parametrize("which", [None, "first", "last"])
@pytest.mark.parametrize("lengths", [(1,), (7,), (64,), (5, 5), (9, 1, 30)])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_the_modules(family, lengths, which):
    model = drawn(family())
    check(model, batch_of(*lengths), which)
    assert quick(model)


def test_all_that_a_model_returns():
    model, batch = drawn(bert()), batch_of(8, 3)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.inference_mode():
        wanted = model(batch, **asked)
        with packing("float32"):
            got = model(batch, **asked)
    assert quick(model)
    pairs = zip(got.hidden_states, wanted.hidden_states, strict=True)
    for ours, right in pairs:
        torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(got.attentions, wanted.attentions, rtol=1e-5, atol=1e-5)


def test_8_bits_as_the_modules(monkeypatch):
    model, batch = drawn(bert()), batch_of(12)
    with torch.inference_mode(), packing("int8"):
        got = model(batch).last_hidden_state
        assert quick(model)
        monkeypatch.setattr(few_rows, "FEW", 11)
        torch.testing.assert_close(got, model(batch).last_hidden_state, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("lengths", [(5,), (4, 4), (9, 1, 3)])
@torch.inference_mode()
def test_token_by_token(lengths):
    model = drawn(CausalLM(gpt2()))
    texts = [torch.arange(n).tolist() for n in lengths]
    logits, state = model.start(texts)
    tokens = logits.argmax(1)
    wanted = model.step(tokens, state)
    with packing("float32"):
        logits, state = model.start(texts)
        assert torch.equal(logits.argmax(1), tokens)
        got = model.step(tokens, state)
    assert quick(model.backbone)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_larger_batches_and_gradients_go_through_the_modules():
    model = drawn(bert())
    check(model, batch_of(64, 64, 1))
    with packing("float32"):
        assert model(batch_of(3)).last_hidden_state.requires_grad
    model.train()
    with torch.no_grad(), packing("float32"):
        model(batch_of(3))
    with torch.no_grad(), torch.autocast("cpu"), packing("float32"):
        model.eval()(batch_of(3))
    assert not model.few_rows._made


def test_hooks_are_called():
    model, seen = drawn(bert()), []
    check(model, batch_of(6))
    part = model.layers[1].feed_forward.up
    handle = part.register_forward_hook(lambda *given: seen.append(1))
    check(model, batch_of(6))
    assert len(seen) == 2  # once with prepared weights, once without
    handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(
        lambda part, *given: seen.append(part)
    )
    check(model, batch_of(6))
    everywhere.remove()
    assert seen.count(part) == 2


def test_adapters_are_not_left_out():
    model = drawn(gpt2())
    before = check(model, batch_of(6))
    add_lora(nn.ModuleDict({"backbone": model}), 2, 8.0, ["attention.qkv", "feed_forward.up"])
    check(drawn(model), batch_of(6))
    assert not torch.equal(check(model, batch_of(6)), before)


def _load(model: Backbone) -> None:
    model.load_state_dict({name: 1.5 * each for name, each in model.state_dict().items()})


def _assign(model: Backbone) -> None:
    state = {name: 1.5 * each for name, each in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _train(model: Backbone) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.train()(batch_of(9)).last_hidden_state.pow(2).sum().backward()
    optimizer.step()
    model.eval()


def _swap(model: Backbone) -> None:
    for weight in model.parameters():
        weight.data = 1.5 * weight.data


def _replace(model: Backbone) -> None:
    model.layers[0].feed_forward = copy.deepcopy(model.layers[1].feed_forward)


def _prune(model: Backbone) -> None:
    del model.layers[1]


def _norm(model: Backbone) -> None:
    with torch.no_grad():
        model.layers[0].attention_norm.bias.add_(1.0)


def _bias(model: Backbone) -> None:
    model.layers[0].feed_forward.up.bias.data = torch.ones(40)


CHANGES = [_load, _assign, _train, _swap, _replace, _prune, _norm, _bias]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_answers_anew(change):
    model, batch = drawn(bert()), batch_of(9)
    before = check(model, batch, "first")
    change(model)
    assert not torch.allclose(check(model, batch, "first"), before, atol=1e-3)
    assert quick(model)


def test_in_another_type_it_computes_in_that():
    model, batch = drawn(bert()), batch_of(9)
    check(model, batch)
    check(model.double(), batch)
    with torch.inference_mode(), packing("float32"):
        assert model(batch).last_hidden_state.dtype == torch.float64
    check(model.float(), batch)


def test_copies_prepare_their_own():
    model, batch = drawn(bert()), batch_of(9)
    check(model, batch)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        _load(other)
        check(other, batch)


def test_threads_ask_at_once():
    model = drawn(bert())
    batches = [batch_of(n) for n in (3, 9, 17, 33)] * 8
    with torch.inference_mode():
        wanted = [model(batch).last_hidden_state for batch in batches]

    @torch.inference_mode()
    def ask(batch: PackedBatch) -> Tensor:
        with packing("float32"):
            return model(batch).last_hidden_state

    with ThreadPoolExecutor(4) as pool:
        for got, right in zip(pool.map(ask, batches), wanted, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-6, atol=1e-5)


@torch.inference_mode()
def test_a_decoder_writes_by_weights_as_they_lie():
    model = drawn(CausalLM(qwen3()))
    shapes = {
        ShapeClass(kernels.FEW, rows, inner, outer): BATCHED
        for rows in ROWS[:2]
        for inner, outer in [(24, 64), (32, 24), (24, 80), (40, 24), (24, TOKENS)]
    }

    def written() -> list[Tensor]:
        logits, state = model.start([[1, 2], [3] * 9, [4], [5, 6], [7]])
        steps = [logits]
        for _ in range(3):
            steps.append(model.step(steps[-1].argmax(1), state))
        state.select([0, 3])
        return [*steps, model.step(torch.tensor([8, 9]), state), model.follow([[1, 2], [3]], state)]

    wanted = written()
    with kernels.kept(Choice("measured", shapes)), packing("plain"):
        for got, right in zip(written(), wanted, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)
    assert quick(model.backbone)
    forms = [part.packed._forms for part in model.modules() if hasattr(part, "packed")]
    assert not any(forms)  # nothing is in memory twice
