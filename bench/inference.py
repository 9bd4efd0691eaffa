"""Answers of a classifier, beside transformers, onnxruntime and OpenVINO: speed and memory.

    PRETUNE_DATA=FOLDER python bench/inference.py
    PRETUNE_DATA=FOLDER python bench/inference.py --data sst2 squad --texts 200 --rounds 5

The same MiniLM with a head of two classes (random: how fast it is does not depend on its values)
answers real texts: pairs of MRPC, sentences of SST-2 and of `emotion`, passages of SQuAD. All
engines tokenize, cut to 256 tokens, and run in one process, in turns, in float32 but for two:

    pretune              `Predictor`, which packs and pads nothing
    pretune, int8        the same with products of 8 bits, where this version has them
    pipeline, 1 and 32   transformers' `pipeline("text-classification")`, as users call it
    sorted               transformers, longest texts first, padded batches of 32
    onnxruntime          the same batches with what `pretune export --to onnx` writes
    onnxruntime, int8    the same with its file in 8 bits
    OpenVINO             the same batches and file as onnxruntime, in float32

The last three are left out where they are not installed.

`one text` are the milliseconds of single texts, each asked by itself: their median and their 95th
percentile. Memory is the highest resident set of a process that answers all texts of a data set.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clock import peak_of, say_peak, settle
from machine import parse, table

OURS = "pretune"
INT8 = "pretune, int8"
ORT = "onnxruntime"
ORT_INT8 = "onnxruntime, int8"
OPENVINO = "OpenVINO"
SORTED = "transformers, sorted"
LENGTH, BATCH = 256, 32
LABELS = ["LABEL_0", "LABEL_1"]

#: One text, or a pair.
Text = str | tuple[str, str]
#: Texts in, the probability of the second class `[N]` out.
Answers = Callable[[Sequence[Text]], np.ndarray]


def read_texts(name: str, count: int) -> list[Text]:
    """Real texts, from all over the file."""
    folder = Path(os.environ["PRETUNE_DATA"]) / name
    if name == "squad":
        data = json.loads((folder / "dev-v1.1.json").read_text(encoding="utf-8"))["data"]
        texts = [paragraph["context"] for article in data for paragraph in article["paragraphs"]]
        return _spread(texts, count)
    with (folder / "train.tsv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    if name == "mrpc":
        return _spread([(row["sentence1"], row["sentence2"]) for row in rows], count)
    column = "text" if "text" in rows[0] else "sentence"
    return _spread([row[column] for row in rows], count)


def _spread(texts: list[Any], count: int) -> list[Text]:
    return texts[:: max(1, len(texts) // count)][:count]


DATA = ("mrpc", "sst2", "emotion", "squad")


def save_model(folder: Path) -> None:
    """Save MiniLM with a head of two classes, as transformers saves it."""
    import transformers

    from pretune.checkpoints.source import find_source

    source = find_source("minilm")
    torch.manual_seed(0)
    kind = transformers.AutoModelForSequenceClassification
    kind.from_pretrained(source, num_labels=2).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(folder)


def classifier(folder: Path, *, pair: bool) -> Any:
    """The model as pretune has it, for texts or for pairs of texts."""
    from pretune.bundle.bundle import load
    from pretune.tasks.classification.classify import Classify, ClassifyOptions

    options = ClassifyOptions(pair=pair, max_length=LENGTH)
    return replace(load(folder), task=Classify(options, LABELS))


def pretune_answers(folder: Path, precision: str) -> Answers:
    """Answers by `Predictor`."""
    from pretune.inference import runtime
    from pretune.inference.predict import Predictor

    # An older version takes a precision that it does not know for float32.
    known = "float32", *re.findall("int8", Path(runtime.__file__).read_text(encoding="utf-8"))
    if precision not in known:
        raise ValueError("not in this version")
    predictors = [
        Predictor(classifier(folder, pair=pair), device="cpu", precision=precision)
        for pair in (False, True)
    ]

    def answers(texts: Sequence[Text]) -> np.ndarray:
        predictor = predictors[not isinstance(texts[0], str)]
        predictions: list[Any] = predictor.predict(predictor.records(list(texts)))
        return np.array([each.scores[LABELS[1]] for each in predictions])

    return answers


def pipeline_answers(folder: Path, batch: int) -> Answers:
    """Answers by transformers' pipeline."""
    import transformers

    pipe = transformers.pipeline(
        "text-classification", model=str(folder), tokenizer=str(folder), device="cpu"
    )

    def answers(texts: Sequence[Text]) -> np.ndarray:
        inputs = [t if isinstance(t, str) else {"text": t[0], "text_pair": t[1]} for t in texts]
        options = {"top_k": None, "truncation": True, "max_length": LENGTH}
        each = pipe(inputs, batch_size=batch, **options)
        return np.array([row["score"] for rows in each for row in rows if row["label"][-1] == "1"])

    return answers


def sorted_answers(folder: Path, engine: str = SORTED) -> Answers:
    """Answers by transformers, onnxruntime or OpenVINO, in padded batches of like lengths."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    run = {SORTED: _torch_model, OPENVINO: _openvino_model}.get(engine, _onnx_model)(folder, engine)

    def answers(texts: Sequence[Text]) -> np.ndarray:
        size = [len(t) if isinstance(t, str) else sum(map(len, t)) for t in texts]
        order = sorted(range(len(texts)), key=lambda i: -size[i])
        scores = np.empty(len(texts))
        for start in range(0, len(texts), BATCH):
            which = order[start : start + BATCH]
            inputs = tokenizer(
                [texts[i] for i in which],
                padding=True,
                truncation=True,
                max_length=LENGTH,
                return_tensors="pt" if engine == SORTED else "np",
            )
            logits = run(dict(inputs))
            scores[which] = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
        return scores

    return answers


def _torch_model(folder: Path, _: str) -> Callable[[dict[str, Any]], np.ndarray]:
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def run(inputs: dict[str, Any]) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(**inputs).logits.numpy()
        return logits

    return run


def _exported(folder: Path, engine: str) -> Path:
    """The file of a model for other engines, made at its first use."""
    from pretune.export.onnx_files import export_onnx

    place = folder / "exported"
    if not place.is_dir():
        export_onnx(classifier(folder, pair=False), place, int8=True)
    return place / "onnx" / f"model{'_quantized' if engine == ORT_INT8 else ''}.onnx"


def _onnx_model(folder: Path, engine: str) -> Callable[[dict[str, Any]], np.ndarray]:
    onnxruntime = importlib.import_module("onnxruntime")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = str(_exported(folder, engine))
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def run(inputs: dict[str, Any]) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], inputs)[0]
        return logits

    return run


def _openvino_model(folder: Path, engine: str) -> Callable[[dict[str, Any]], np.ndarray]:
    openvino = importlib.import_module("openvino")

    # By itself it computes in bf16 where the processor can.
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(str(_exported(folder, engine)), "CPU", options)

    def run(inputs: dict[str, Any]) -> np.ndarray:
        logits: np.ndarray = model(inputs)["logits"]
        return logits

    return run


#: What makes the answers of each engine.
ENGINES: dict[str, Callable[[Path], Answers]] = {
    OURS: lambda folder: pretune_answers(folder, "float32"),
    INT8: lambda folder: pretune_answers(folder, "int8"),
    "pipeline, batches of 1": lambda folder: pipeline_answers(folder, 1),
    "pipeline, batches of 32": lambda folder: pipeline_answers(folder, BATCH),
    SORTED: sorted_answers,
    ORT: lambda folder: sorted_answers(folder, ORT),
    ORT_INT8: lambda folder: sorted_answers(folder, ORT_INT8),
    OPENVINO: lambda folder: sorted_answers(folder, OPENVINO),
}
#: Engines that answer a single text as another one does, or not at all like it.
ALIKE = ("pipeline, batches of 32",)


def prepare(folder: Path, *, peers: bool) -> dict[str, Answers]:
    """The engines that there are; says which are not."""
    missing: dict[str, str] = {}
    if importlib.util.find_spec("onnxruntime") is None:
        missing |= dict.fromkeys((ORT, ORT_INT8), "pip install onnx onnxruntime")
    if importlib.util.find_spec("openvino") is None:
        missing[OPENVINO] = "pip install openvino"
    made: dict[str, Answers] = {}
    for name, make in ENGINES.items():
        if name in missing or (not peers and not name.startswith(OURS)):
            continue
        try:
            made[name] = make(folder)
            made[name](["a good film"])
        except Exception as error:
            if name == OURS:
                raise
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    for name, why in missing.items():
        print(f"without {name}: {why}")
    return made


def measure_many(
    name: str, texts: list[Text], engines: dict[str, Answers], rounds: int
) -> dict[str, list[float]]:
    """Texts a second; the engines have to agree."""
    right = engines[OURS](texts)
    for engine, answers in engines.items():
        apart = float(np.abs(answers(texts) - right).max())
        if apart > (0.05 if engine in (INT8, ORT_INT8) else 1e-3):
            raise SystemExit(f"{name}: {engine} differs from {OURS} by up to {apart:.1e}")
    rates: dict[str, list[float]] = {engine: [] for engine in engines}
    for number in range(rounds):
        for engine in engines if number % 2 == 0 else reversed(list(engines)):
            settle(engines[engine], texts[:1])
            start = time.perf_counter()
            engines[engine](texts)
            rates[engine].append(len(texts) / (time.perf_counter() - start))
    return rates


def measure_single(
    texts: list[Text], engines: dict[str, Answers], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of one text, `{"p50": {engine: [each round]}, "p95": ...}`."""
    names = [engine for engine in engines if engine not in ALIKE]
    figures: dict[str, dict[str, list[float]]] = {"p50": {}, "p95": {}}
    for number in range(rounds):
        for engine in names if number % 2 == 0 else reversed(names):
            settle(engines[engine], texts)
            taken = []
            for text in texts:
                start = time.perf_counter()
                engines[engine]([text])
                taken.append(1000 * (time.perf_counter() - start))
            figures["p50"].setdefault(engine, []).append(float(np.percentile(taken, 50)))
            figures["p95"].setdefault(engine, []).append(float(np.percentile(taken, 95)))
    return figures


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--texts", type=int, default=128, help="of each data set")
    parser.add_argument("--single", type=int, default=24, help="texts asked one by one, or 0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--only", choices=ENGINES, help="run one engine once and print its memory")
    parser.add_argument("--model", type=Path, help="what --only loads")
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with " + ", ".join(DATA))
    if options.only:
        ENGINES[options.only](options.model)(read_texts(options.data[0], options.texts))
        say_peak()
        return
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_model(folder)
        engines = prepare(folder, peers=not options.ours)
        for name in options.data:
            texts = read_texts(name, options.texts)
            many = measure_many(name, texts, engines, options.rounds)
            print("\n" + table(f"{name}: {len(texts)} texts", many, OURS, "texts/s", digits=1))
            if not options.single:
                continue
            single = measure_single(texts[: options.single], engines, options.rounds)
            for part, each in single.items():
                what = f"{name}: one text, {part}"
                print("\n" + table(what, each, OURS, "ms", lower=True, digits=1), flush=True)
        if not options.no_memory:
            name = options.data[-1]
            settings = ["--data", name, "--texts", str(options.texts), "--model", str(folder)]
            peaks = {e: [peak_of(__file__, *settings, "--only", e)] for e in engines}
            what = f"{name}: memory"
            print("\n" + table(what, peaks, OURS, "MiB", lower=True))


if __name__ == "__main__":
    main()
