"""Every setting and limit of `pretune serve`, with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from pretune.errors import RunError

MIB = 1 << 20


@dataclass(frozen=True)
class ServeOptions:
    """What is served, where, to whom, and how much of it a request may ask for.

    Attributes:
        models: the name and the source (run, folder, Hub id, `minilm`) of each; the first answers
            where a request names none.
        host: the address to listen on.
        port: 0: a free one.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `float32`, `bf16` or `int8`.
        workers: processes that hold the models and compute.
        allow_pickle: also read `pytorch_model.bin`.
        watch: take a run's new best model as soon as it is there.
        api_key_file: keys, one a line; None: nobody needs one.
        insecure: serve other machines without a key.
        cors: origins whose pages may ask, e.g. `https://example.org`; `*`: all.
        access_log: write a line of JSON for each request.
        drain: seconds that what is running may take after SIGTERM.
        timeout: seconds that a request may wait and be computed.
        header_seconds: seconds in which the head of a request has to arrive.
        body_seconds: seconds in which its body has to arrive.
        write_seconds: seconds in which a client has to read some of its answer.
        max_connections: open connections.
        max_queue: requests that wait or are computed.
        max_body: bytes in the body of a request.
        max_bodies: bytes in the bodies of all requests that wait or are computed.
        max_depth: lists and objects within each other in JSON.
        max_values: values in JSON.
        max_inputs: inputs of a request.
        max_chars: characters in a text.
        max_request_tokens: tokens in all inputs of a request.
        max_batch_tokens: tokens that are computed at a time; None: what suits the device.
        max_new_tokens: tokens in a continuation.
        max_samples: continuations of a prompt (`n`).
        max_choices: continuations of all prompts of a request.
        max_stops: texts that end a continuation.
        max_stop_chars: characters in such a text.
        max_logprobs: probable tokens told for each token.
        max_top_k: answers told for each input.

    Raises:
        RunError: a value makes no sense; names it.
    """

    models: tuple[tuple[str, str], ...]
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    precision: str = "auto"
    workers: int = 1
    allow_pickle: bool = False
    watch: bool = False
    api_key_file: Path | None = None
    insecure: bool = False
    cors: tuple[str, ...] = ()
    access_log: bool = False
    drain: float = 30.0
    timeout: float = 120.0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    max_connections: int = 1024
    max_queue: int = 512
    max_body: int = 8 * MIB
    max_bodies: int = 256 * MIB
    max_depth: int = 32
    max_values: int = 200_000
    max_inputs: int = 2048
    max_chars: int = 200_000
    max_request_tokens: int = 500_000
    max_batch_tokens: int | None = None
    max_new_tokens: int = 4096
    max_samples: int = 16
    max_choices: int = 64
    max_stops: int = 16
    max_stop_chars: int = 256
    max_logprobs: int = 20
    max_top_k: int = 1000

    def __post_init__(self) -> None:
        if not self.models:
            raise RunError("nothing to serve", "Name a run, a model folder or a Hub id.")
        for item in fields(self):
            value = getattr(self, item.name)
            # What may be 0: any port is free then, nothing is waited for.
            low = 0 if item.name in ("port", "drain") else None
            if type(value) in (int, float) and not (value > 0 or value == low):
                raise RunError(f"{item.name} must be above 0, not {value:g}")
