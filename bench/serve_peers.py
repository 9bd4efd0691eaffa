"""What people serve models with, for `bench/serve.py`: each is a process with a port.

    python bench/serve_peers.py KIND FOLDER PORT

    pipeline    transformers' pipeline("text-classification") behind FastAPI, a request at a time
    litserve    the same model behind LitServe, which puts waiting requests into padded batches
    sentences   sentence-transformers behind FastAPI, a request at a time
    generate    transformers' generate behind FastAPI, which writes for waiting requests side by
                side, and takes the next ones when all of them are done

All answer `POST /predict {"text": ...}`; `generate` gets `{"ids": [...], "max_tokens": ...}`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

#: Tokens of a text that all engines read.
LENGTH = 256
#: Requests that are written side by side, and seconds that the first of them waits for others.
WRITTEN, WRITTEN_WAIT = 8, 0.02


def one_by_one(answer: Callable[[str], Any], port: int) -> None:
    """Serve a function behind FastAPI: while it runs, others wait."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Asked(BaseModel):
        text: str

    app = FastAPI()

    async def predict(asked: Asked) -> Any:
        return answer(asked.text)

    # What is asked is found by the annotation, which is a name within this function.
    predict.__annotations__["asked"] = Asked
    app.post("/predict")(predict)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def pipeline(folder: str, port: int) -> None:
    """Classify by transformers' pipeline."""
    import transformers

    pipe = transformers.pipeline("text-classification", model=folder, device="cpu")
    options = {"top_k": None, "truncation": True, "max_length": LENGTH}
    one_by_one(lambda text: pipe(text, **options), port)


def sentences(folder: str, port: int) -> None:
    """Embed by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    model.max_seq_length = LENGTH
    one_by_one(
        lambda text: model.encode(
            text, normalize_embeddings=True, show_progress_bar=False
        ).tolist(),
        port,
    )


def litserve(folder: str, port: int) -> None:
    """Classify behind LitServe, in batches."""
    from serve_litserve import serve

    serve(folder, port)


def generate(folder: str, port: int) -> None:
    """Write by transformers' generate, batch after batch."""
    import torch
    import transformers
    import uvicorn
    from fastapi import FastAPI, Request

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    waiting: asyncio.Queue[tuple[list[int], int, asyncio.Future[list[int]]]] = asyncio.Queue()

    def write(prompts: list[list[int]], count: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
        with torch.inference_mode():
            written = model.generate(ids, attention_mask=mask, pad_token_id=0, **options)
        rows: list[list[int]] = written[:, longest:].tolist()
        return rows

    async def work() -> None:
        while True:
            batch = [await waiting.get()]
            await asyncio.sleep(WRITTEN_WAIT)
            while len(batch) < WRITTEN and not waiting.empty():
                batch.append(waiting.get_nowait())
            prompts, counts, answers = zip(*batch, strict=True)
            rows = await asyncio.to_thread(write, list(prompts), max(counts))
            for row, count, answer in zip(rows, counts, answers, strict=True):
                answer.set_result(row[:count])

    app, working = FastAPI(), list[asyncio.Task[None]]()

    async def predict(request: Request) -> Any:
        if not working:
            working.append(asyncio.create_task(work()))
        asked, answer = await request.json(), asyncio.get_running_loop().create_future()
        await waiting.put((asked["ids"], asked["max_tokens"], answer))
        tokens = await answer
        return {"text": tokenizer.decode(tokens), "tokens": len(tokens)}

    predict.__annotations__["request"] = Request
    app.post("/predict")(predict)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


KINDS = {
    "pipeline": pipeline,
    "litserve": litserve,
    "sentences": sentences,
    "generate": generate,
}


def main() -> None:
    """Serve until the process is ended."""
    kind, folder, port = sys.argv[1:]
    KINDS[kind](folder, int(port))


if __name__ == "__main__":
    main()
