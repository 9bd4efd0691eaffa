"""A request that works, for each kind of model."""

from __future__ import annotations

from typing import Any

from pretune.serving.jobs import Served

#: A value for the columns that tasks read; other columns get a text.
_COLUMNS: dict[str, Any] = {
    "text": "Where is my parcel?",
    "sentence1": "A man is playing a guitar.",
    "sentence2": "Somebody makes music.",
    "question": "Who wrote it?",
    "context": "The letter was written by Ada in 1843.",
    "tokens": ["Ada", "lived", "in", "London", "."],
    "source": "Guten Morgen!",
    "choices": ["She wrote a letter.", "She ate the piano."],
    "turns": ["Hello!"],
    "messages": [{"role": "user", "content": "Hello!"}],
}
_MESSAGES = [{"role": "user", "content": "Hello!"}]


def example_for(served: Served) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request that the model answers."""
    model = {"model": served.name}
    if "chat" in served.abilities:
        return "/v1/chat/completions", {**model, "messages": _MESSAGES, "max_tokens": 32}
    if "generate" in served.abilities and served.task in ("causal_lm", None):
        return "/v1/completions", {**model, "prompt": "Once upon a time", "max_tokens": 32}
    if "predict" in served.abilities:
        return "/v1/predict", {**model, "inputs": [example_input(served)]}
    return "/v1/embeddings", {**model, "input": ["Where is my parcel?"]}


def example_input(served: Served) -> Any:
    """An input of `/v1/predict` for the model: a text, or its columns."""
    if served.task == "mask_lm":
        return "Paris is the [MASK] of France."
    if len(served.inputs) == 1 and isinstance(_COLUMNS.get(served.inputs[0], ""), str):
        return _COLUMNS.get(served.inputs[0], "Where is my parcel?")
    return {name: _COLUMNS.get(name, "Where is my parcel?") for name in served.inputs}
