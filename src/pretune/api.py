"""The public functions: `train`, `resume`, `evaluate`, `predict`, `generate`, `prompt`, `embed`.

import pretune
run = pretune.train("train.tsv", {"train.epochs": 2})
model = pretune.load(run.folder)
print(pretune.evaluate(model, "test.tsv").metrics)
print(pretune.predict(model, ["Where is my parcel?"]))
pretune.push(run.folder, "me/tickets")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretune.bundle.bundle import Bundle, load
from pretune.corpus.store import StoredDocuments, is_corpus
from pretune.data.readers.files import read
from pretune.data.records import MAX_CHARS, Records
from pretune.decoding.continuations import Generation
from pretune.decoding.sampling import Decoding
from pretune.errors import DataError, PretuneError, did_you_mean, note
from pretune.evaluation.few_shot.result import FewShotResult
from pretune.evaluation.few_shot.study import measure, options_from
from pretune.inference.embed import Embedder
from pretune.inference.generate import TextGenerator
from pretune.inference.predict import Predictor, column_names, task_of
from pretune.inference.reference import compared
from pretune.inference.runtime import check_precision, choose_device
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import Prediction
from pretune.tasks.features import adapt_records, read_for
from pretune.training.data import Data, check_no_columns, read_features
from pretune.training.logging import Reporter
from pretune.training.run import resume as resume_run
from pretune.training.run import train_recipe
from pretune.training.run_result import RunResult
from pretune.training.validation import Evaluation, evaluate_features


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Train a model as a recipe says.

    Args:
        recipe: a `Recipe`, its values as a mapping, the name of a built-in one, a YAML file, or a
            labelled data file (`.jsonl`, `.csv`, `.tsv`, `.parquet`).
        overrides: values to change by their keys: `{"train.epochs": 2}` or `["train.epochs=2"]`.
        overwrite: delete an earlier run in the output folder.
        quiet: show no progress.

    Returns:
        the outcome: `.folder` can be given to `load`, `.metrics` are the best model's.

    Raises:
        PretuneError: the recipe, data, model or folder cannot be used; says what to do.
    """
    if isinstance(recipe, Recipe):
        chosen = recipe.changed(overrides)
    elif isinstance(recipe, Mapping):
        chosen = Recipe.of(recipe).changed(overrides)
    else:
        chosen = Recipe.load(recipe, overrides)
    return train_recipe(chosen, overwrite=overwrite, quiet=quiet)


def resume(
    run: str | Path, overrides: Mapping[str, Any] | Sequence[str] = (), *, quiet: bool = False
) -> RunResult:
    """Continue a training that was stopped or killed, exactly from its last checkpoint.

    Args:
        run: its folder.
        overrides: new values for keys that do not change what is learned, e.g. `train.log_every`.
        quiet: show no progress.

    Raises:
        PretuneError: there is no run, its data have changed, or its checkpoint is of another
            version.
    """
    return resume_run(run, overrides, quiet=quiet)


def evaluate(
    model: Bundle | str | Path,
    data: str | Path | Records,
    *,
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = 8192,
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Measure a trained model on labelled data.

    Args:
        model: from `load`, or a run, a folder or a Hub id that `load` takes.
        data: a file, a Hub dataset `owner/name[:config]:split`, a prepared corpus, or records.
        columns: the task's names of columns -> the data's; default: as in the training data.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `float32`, `bf16` or `int8`.
        batch_tokens: tokens at a time; changes memory and speed only.
        encoding: of a text file.
        quoting: of a CSV or TSV file: `auto`, `standard` or `none`.
        max_chars: longer texts are refused as mistakes; default: 100,000 characters, or 100 million
            where the task reads long texts as several sequences (`causal_lm`, `answer`).
        quiet: do not report what was read and which records were skipped.

    Raises:
        PretuneError: the data or the model cannot be used, or no record can be scored; says what to
            do.
    """
    bundle = model if isinstance(model, Bundle) else load(model)
    task = task_of(bundle)
    target = choose_device(device)
    check_precision(precision, target)
    # Records, or documents of a prepared corpus.
    records: Data
    if isinstance(data, Records):
        names = column_names(bundle, columns)
        records = adapt_records(task, data, names) if columns else data
    elif is_corpus(data):
        check_no_columns(data, columns or {})
        records = StoredDocuments.open(data)
    else:
        names = column_names(bundle, columns)
        records = read_for(
            task, data, columns=names, encoding=encoding, quoting=quoting, max_chars=max_chars
        )
    # Tokenize, then run the model over all of it.
    features = read_features("data", task, records, bundle, Reporter(quiet=quiet), evaluation=True)
    if len(features) == 0:
        why = f": {features.skipped[0].why}" if features.skipped else ""
        raise DataError(f"{records.origin}: nothing to evaluate on{why}", "Name other data.")
    bundle.model.to(target)
    features = compared(bundle, features, target)
    return evaluate_features(
        *(task, bundle.model, features),
        device=target,
        precision=precision,
        batch_tokens=batch_tokens,
    )


def predict(
    model: Bundle | str | Path,
    inputs: Sequence[Any] | str,
    *,
    device: str = "auto",
    precision: str = "auto",
    max_chars: int | None = None,
) -> list[Prediction]:
    """Answer inputs, in their order.

    Args:
        model: from `load`, or a run, a folder or a Hub id that `load` takes.
        inputs: texts; for models of pairs, two texts each: `[("a", "b"), ...]`; or mappings with
            the task's column names. A single text works too.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `float32`, `bf16` or `int8`: products in 8 bits, on a CPU.
        max_chars: longer texts are refused as mistakes; default: as for `evaluate`.

    Raises:
        PretuneError: the inputs or the model cannot be used; says what to do.
    """
    bundle = model if isinstance(model, Bundle) else load(model)
    predictor = Predictor(bundle, device=device, precision=precision)
    rows = [inputs] if isinstance(inputs, str) else list(inputs)
    if not rows:
        return []
    records = predictor.records(rows)
    return predictor.predict(
        records if max_chars is None else replace(records, max_chars=max_chars)
    )


def generate(
    model: Bundle | str | Path,
    prompts: Sequence[str] | str,
    *,
    device: str = "auto",
    batch_size: int = 16,
    **decoding: Any,
) -> list[Generation]:
    """Let a language model continue prompts.

    Args:
        model: from `load`, or a run, a folder or a Hub id that `load` takes.
        prompts: texts; a single text works too.
        device: `auto`, `cpu`, `cuda`, ...
        batch_size: continuations at a time; changes memory and speed only.
        decoding: options of `Decoding`: `temperature=0.8, top_k=40, samples=3, ...`

    Returns:
        all continuations, grouped by prompt in the order of the prompts.

    Raises:
        PretuneError: an option makes no sense, or a prompt or the model cannot be used.
    """
    known = [item.name for item in fields(Decoding)]
    for name in decoding:
        if name not in known:
            raise PretuneError(f"generate has no option '{name}'", did_you_mean(name, known))
    chosen = Decoding(**decoding)
    bundle = model if isinstance(model, Bundle) else load(model)
    writer = TextGenerator.of(bundle, device=device, batch_size=batch_size)
    return writer.generate([prompts] if isinstance(prompts, str) else prompts, chosen)


def prompt(
    model: Bundle | str | Path,
    data: str | Path | Records,
    *,
    train: str | Path | Records | None = None,
    device: str = "auto",
    batch_tokens: int = 8192,
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> FewShotResult:
    """Measure how well a language model answers from examples in its prompt alone.

    Args:
        model: from `load`, or a run, a folder or a Hub id that `load` takes.
        data: a labelled file, a Hub dataset `owner/name[:config]:split`, or records.
        train: where the examples are drawn from; default: from `data`, whose examples are then not
            evaluated.
        device: `auto`, `cpu`, `cuda`, ...
        batch_tokens: tokens at a time; changes memory and speed only.
        encoding: of text files.
        quoting: of CSV and TSV files: `auto`, `standard` or `none`.
        max_chars: longer texts are refused as mistakes; default: 100,000 characters.
        progress: called with the number of questions done and their total number.
        options: options of `FewShotOptions`: `shots=(0, 4), score="pmi", ...`

    Raises:
        PretuneError: the data, the template, an option or the model cannot be used; says what to
            do.
    """
    chosen = options_from(options)

    def records(source: str | Path | Records) -> Records:
        if isinstance(source, Records):
            return source
        limit = MAX_CHARS if max_chars is None else max_chars
        own = read(source, encoding=encoding, quoting=quoting, max_chars=limit)
        for text in own.notes:
            note(text)
        return own

    return measure(
        model if isinstance(model, Bundle) else load(model),
        records(data),
        None if train is None else records(train),
        chosen,
        device=device,
        batch_tokens=batch_tokens,
        progress=progress,
    )


def embed(
    model: Bundle | str | Path,
    texts: Sequence[str] | str,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    device: str = "auto",
    precision: str = "float32",
    batch_tokens: int | None = None,
    max_length: int | None = None,
) -> NDArray[np.float32]:
    """Turn texts into vectors.

    Where the model's folder has files of sentence-transformers, the defaults are what they say.

    Args:
        model: from `load`, or a run, a folder or a Hub id that `load` takes; a head is not used.
        texts: N texts; a single text works too.
        pooling: `mean`, `cls`, `last`, `max` or `mean_sqrt_len_tokens`; default: `mean` for
            encoders, `last` for decoders.
        normalize: make every vector of length 1, so that a dot product is a cosine; default: yes.
        prompt: what to put before every text; default: nothing.
        prompt_name: the name of such a prompt in the model's folder, e.g. `query`.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `float32`, `bf16`, `int8` or `auto`.
        batch_tokens: tokens at a time; changes memory and speed only. Default: what suits the
            device.
        max_length: tokens to read of a text; the rest is cut. Default: all the model can read.

    Returns:
        `[N, hidden]` float32; narrower where the folder says so (`truncate_dim`).

    Raises:
        PretuneError: a text or the model cannot be used, or it does not support the pooling.
    """
    embedder = Embedder(
        model if isinstance(model, Bundle) else load(model, bare=True),
        pooling=pooling,
        normalize=normalize,
        prompt=prompt,
        prompt_name=prompt_name,
        device=device,
        precision=precision,
        batch_tokens=batch_tokens,
        max_length=max_length,
    )
    return embedder.embed([texts] if isinstance(texts, str) else texts)


__all__ = ["embed", "evaluate", "generate", "load", "predict", "prompt", "resume", "train"]
