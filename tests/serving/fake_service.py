"""A service without processes: tiny models answer where they are asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretune.bundle.bundle import Bundle, load
from pretune.errors import DataError
from pretune.inference.predict import Predictor
from pretune.serving.jobs import Served
from pretune.serving.refusal import Refusal, invalid


class FakeService:
    """Answers `predict` by a `Predictor`; a model called `slow` waits, and `broken` fails.

    Attributes:
        begun: how many requests to `slow` have begun.
        given_up: how many of them were cancelled.
        release: lets them go on.
    """

    ready = True

    def __init__(self, bundle: Bundle) -> None:
        self._predictor = Predictor(bundle, device="cpu")
        self.begun = self.given_up = 0
        self.release = threading.Event()

    def models(self) -> list[Served]:
        task = self._predictor.task
        return [
            Served(
                name=name,
                source=name,
                task=task.name,
                version=1,
                model_type="bert",
                labels=None,
                inputs=tuple(task.inputs),
                abilities=frozenset({"predict", "explain"}),
                context_length=64,
                embedding_size=None,
                parameters=1,
                loaded=0.0,
            )
            for name in ("tiny", "slow", "broken")
        ]

    def model(self, name: str | None) -> Served:
        for served in self.models():
            if name in (None, "", served.name):
                return served
        raise Refusal(404, "unknown_model", "No model is called so.", param="model")

    async def predict(
        self, model: str | None, inputs: Sequence[Any], *, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        name = self.model(model).name
        if name == "broken":
            raise RuntimeError(f"cannot read {inputs}")
        if name == "slow":
            await self._wait()
        try:
            records = self._predictor.records(inputs)
            answers = self._predictor.predict(records)
        except DataError as error:
            raise invalid(str(error)) from None
        shown = self._predictor.task.shown
        return [
            {**{name: row[name] for name in shown}, **answer.top(top_k).to_dict()}
            for row, answer in zip(records.rows, answers, strict=True)
        ]

    async def explain(
        self, model: str | None, inputs: Sequence[Any], *, attention: bool = False
    ) -> list[dict[str, Any]]:
        return [{"tokens": ["[CLS]"], "attributions": [float("nan")]} for _ in inputs]

    async def _wait(self) -> None:
        self.begun += 1
        try:
            while not self.release.is_set():
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            self.given_up += 1
            raise


def fake_service(folder: Path) -> FakeService:
    return FakeService(load(folder))
