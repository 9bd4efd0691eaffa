"""A classifier behind LitServe, which puts waiting requests into padded batches.

A file of its own, as LitServe's processes have to find the class by its name.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

litserve: Any = importlib.import_module("litserve")

#: Tokens of a text that all engines read.
LENGTH = 256
#: Requests in a batch, and seconds that the first of them waits for others.
BATCH, WAIT = 32, 0.005
#: Where the model is: for the process that computes.
FOLDER = "BENCH_SERVE_FOLDER"


class Labels(litserve.LitAPI):  # type: ignore[misc]
    """transformers' model, as LitServe's documentation serves it."""

    def setup(self, device: str) -> None:
        import transformers

        folder = os.environ[FOLDER]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        kind = transformers.AutoModelForSequenceClassification
        self.model = kind.from_pretrained(folder).eval()

    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return str(request["text"])

    def predict(self, texts: Any) -> Any:
        import torch

        options = {"padding": True, "truncation": True, "max_length": LENGTH}
        with torch.inference_mode():
            given = self.tokenizer(list(texts), return_tensors="pt", **options)
            rows = self.model(**given).logits.softmax(-1).tolist()
        names = self.model.config.id2label
        return [[{"label": names[i], "score": p} for i, p in enumerate(row)] for row in rows]

    def encode_response(self, output: Any) -> Any:
        return output


def serve(folder: str, port: int) -> None:
    """Serve until the process is ended."""
    os.environ[FOLDER] = folder
    server = litserve.LitServer(Labels(max_batch_size=BATCH, batch_timeout=WAIT), accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        pretty_logs=False,
    )
