"""The public functions: `load`, `train`, `evaluate`, `predict`, `describe`, `compare`, ...

import pretune
run = pretune.train("train.tsv", {"train.epochs": 2})
model = pretune.load(run.folder)
print(pretune.evaluate(model, "test.tsv").metrics)
print(model(["Where is my parcel?"]))
pretune.push(run.folder, "me/tickets")

Data are files, or tables in memory: lists of dicts, frames of pandas and polars, Arrow tables, and
datasets of Hugging Face's `datasets`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from pretune.bundle.adapted import with_adapter as put_beside_bundle
from pretune.bundle.bundle import Bundle
from pretune.bundle.bundle import load as load_bundle
from pretune.checkpoints.source import find_tokenizer
from pretune.data.readers.files import read
from pretune.data.readers.in_memory import Table, from_memory, held_data
from pretune.data.records import MAX_CHARS, Records
from pretune.decoding.continuations import Generation
from pretune.errors import CheckpointError, PretuneError, RunError, describe_value, note
from pretune.evaluation.compare import Compared, check_tasks
from pretune.evaluation.compare import compare as compare_examined
from pretune.evaluation.examine import examine
from pretune.evaluation.few_shot.result import FewShotResult
from pretune.evaluation.few_shot.study import measure, options_from
from pretune.inference.predict import column_names, task_of
from pretune.inference.predictions import Predictions
from pretune.inspection.describe import Description
from pretune.inspection.describe import describe as describe_records
from pretune.model_object import Inputs, Model, P
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import AnyTask, Task
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.training.callbacks import Callback
from pretune.training.data import examined_records
from pretune.training.run import resume as resume_run
from pretune.training.run import train_or_resume, train_recipe
from pretune.training.run_result import RunResult
from pretune.training.validation import Evaluation

#: A model, or where it is: a run, a folder or a Hub id that `load` takes.
AnyModel = Bundle | str | Path


@overload
def load(
    source: str | Path,
    *,
    answers: type[P],
    task: AnyTask | None = None,
    bare: bool = False,
    options: Mapping[str, Any] | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    config: Mapping[str, Any] | None = None,
    layers: Literal["every-other"] | Sequence[int] | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    dtype: str = "float32",
    mmap: bool = True,
    allow_pickle: bool = False,
) -> Model[P]: ...
@overload
def load(
    source: str | Path,
    *,
    task: Task[Any, P],
    answers: None = None,
    bare: bool = False,
    options: Mapping[str, Any] | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    config: Mapping[str, Any] | None = None,
    layers: Literal["every-other"] | Sequence[int] | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    dtype: str = "float32",
    mmap: bool = True,
    allow_pickle: bool = False,
) -> Model[P]: ...
@overload
def load(
    source: str | Path,
    *,
    task: None = None,
    answers: None = None,
    bare: bool = False,
    options: Mapping[str, Any] | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    config: Mapping[str, Any] | None = None,
    layers: Literal["every-other"] | Sequence[int] | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    dtype: str = "float32",
    mmap: bool = True,
    allow_pickle: bool = False,
) -> Model[Any]: ...
def load(
    source: str | Path,
    *,
    answers: Any = None,
    task: AnyTask | None = None,
    bare: bool = False,
    options: Mapping[str, Any] | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    config: Mapping[str, Any] | None = None,
    layers: Literal["every-other"] | Sequence[int] | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    dtype: str = "float32",
    mmap: bool = True,
    allow_pickle: bool = False,
) -> Model[Any]:
    """Load a model with its tokenizer; it is in evaluation mode, as it answers.

    Args:
        source: the folder of a run, a folder in the Hugging Face layout, Google's TensorFlow
            release of a BERT, a GGUF file, `minilm`, `smollm2`, a Hub id (`owner/name[@revision]`),
            or the name of a size, such as `bert-base`, for random weights.
        answers: the class of its answers, such as `pretune.ClassPrediction`: type checkers then
            know what `predict` returns, and a model with other answers is refused.
        task: the task to load for. Where the checkpoint has no head for it, or one for other
            labels, the head is new. Default: the task that the checkpoint was trained for.
        bare: load the backbone alone, whatever the checkpoint was trained for.
        options: changed options of the task the checkpoint was trained for, e.g. `{"beams": 1}`.
        tokenizer: another tokenizer than the source's, or where to find it.
        config: entries of `config.json` to change; for random weights only.
        layers: which layers of a checkpoint to keep, counted from 0; default: all.
        dropout: of the hidden layers; default: as the checkpoint says.
        attention_dropout: of the attention weights; default: as the checkpoint says.
        dtype: the type of the model: `float32` (which training needs), `float16` or `bfloat16`;
            `auto`: the file's own, and the narrowest that loses nothing if it has several.
        mmap: map weights that need no conversion into memory as private copy-on-write pages instead
            of reading them. Fast, but the process ends if the file is truncated or overwritten
            meanwhile.
        allow_pickle: also read `pytorch_model.bin`, by torch's restricted unpickler.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind; or with other answers.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"load: expected the name or the folder of a model, found {describe_value(source)}",
            "For example minilm, or runs/tickets.",
        )
    bundle = load_bundle(
        source,
        task=task,
        bare=bare,
        options=options,
        tokenizer=tokenizer,
        config=config,
        layers=layers,
        dropout=dropout,
        attention_dropout=attention_dropout,
        dtype=dtype,
        mmap=mmap,
        allow_pickle=allow_pickle,
    )
    return Model.of(bundle).answering(answers)


def with_adapter(
    model: Bundle, source: str | Path, *, options: Mapping[str, Any] | None = None
) -> Model[Any]:
    """Put an adapter that pretune or peft wrote beside a model, which stays as it is.

    The result shares its weights: each further adapter takes the memory of its own small matrices
    and of its head.

    Args:
        model: the one that the adapter was trained beside, with or without a task.
        source: the folder of the adapter, such as `RUN/best/adapter`.
        options: changed options of the task, e.g. `{"beams": 1}`.

    Returns:
        a model that answers as the adapter was trained to.

    Raises:
        PretuneError: there is no adapter, it is damaged, for another model or of a kind that is not
            computed here; or the model has one already, or is in 8 bits.
    """
    return Model.of(put_beside_bundle(model, source, options=options))


def _opened(model: AnyModel, device: str = "auto", **how: Any) -> Model[Any]:
    """Return a model that answers on a device: this very one, or loaded from where it is."""
    if not isinstance(model, Bundle):
        model = load_bundle(model, **how)
    own = model if isinstance(model, Model) else Model.of(model)
    return own if device == "auto" else Model.of(own).to(device)


def train(
    recipe: Recipe | str | Path | Mapping[str, Any] | Table,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    data: Table | str | Path | None = None,
    validation: Table | str | Path | float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train a model as a recipe says.

    Args:
        recipe: a `Recipe`, its values as a mapping, the name of a built-in one, a YAML file; or
            labelled data: a file (`.jsonl`, `.csv`, `.tsv`, `.parquet`) or a table in memory. A
            mapping of lists is a table.
        overrides: values to change by their keys: `{"train.epochs": 2}` or `["train.epochs=2"]`.
        data: what to train on in the place of the recipe's `data.train`: a file, or a table in
            memory: a list of dicts, a dict of columns, a frame of pandas or polars, an Arrow table,
            a `datasets.Dataset`. A streaming dataset is read to its end.
        validation: the same for `data.validation`; or the share of the data to hold back.
        overwrite: delete an earlier run in the output folder.
        resume: go on with the run in the output folder, if there is one: what may be called again
            and again, as by a launcher that restarts processes.
        quiet: show no progress.
        callbacks: objects with some of the methods of `Callback`, called between updates.

    Returns:
        the outcome: `.folder` can be given to `load`, `.metrics` are the best model's.

    Raises:
        PretuneError: the recipe, data, model or folder cannot be used; says what to do.
    """
    if resume and overwrite:
        raise RunError("resume keeps an earlier run, and overwrite deletes it: give one of them")
    source: Any = recipe
    if not isinstance(recipe, Recipe | str | Path | Mapping) or _has_columns(recipe):
        if data is not None:
            raise PretuneError("train: two data", "Give data=... beside a recipe, or data alone.")
        source, data = None, from_memory(recipe)
    with _handed_in(data, validation) as given:
        # Data alone are the recipe.
        source = given.pop("data.train") if source is None else source
        changes = _changed(overrides, given)
        made = isinstance(source, Recipe)
        chosen = source.changed(changes) if made else Recipe.load(source, changes)
        if resume:
            return train_or_resume(chosen, quiet=quiet, callbacks=callbacks)
        return train_recipe(chosen, overwrite=overwrite, quiet=quiet, callbacks=callbacks)


def _has_columns(values: object) -> bool:
    """Whether a mapping is a dict of columns, and no recipe: of these some values are no lists."""
    return (
        isinstance(values, Mapping)
        and bool(values)
        and not {"task", "data"} & {*values}
        and all(
            isinstance(own, Sized) and not isinstance(own, str | bytes | Mapping)
            for own in values.values()
        )
    )


def resume(
    run: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    data: Table | str | Path | None = None,
    validation: Table | str | Path | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Continue a training that was stopped or killed, exactly from its last checkpoint.

    Args:
        run: its folder.
        overrides: new values for keys that do not change what is learned, e.g. `train.log_every`.
        data: the same data again, where they came from memory or a pipe.
        validation: the same for the validation data.
        quiet: show no progress.
        callbacks: as for `train`; what was given there is not kept in the run.

    Raises:
        PretuneError: there is no run, its data have changed or are not handed in again, or its
            checkpoint is of another version.
    """
    with _handed_in(data, validation) as given:
        changes = _changed(overrides, given)
        return resume_run(run, changes, quiet=quiet, callbacks=callbacks)


@contextmanager
def _handed_in(
    data: Table | str | Path | None, validation: Table | str | Path | float | None
) -> Iterator[dict[str, Any]]:
    """Context in which recipes may name these data; yields what to change of a recipe."""
    pairs = {"data.train": data, "data.validation": validation}
    plain = {key: own for key, own in pairs.items() if isinstance(own, str | Path | int | float)}
    tables: dict[str, Any] = {key: own for key, own in pairs.items() if key not in plain}
    with held_data(**tables) as names:
        texts = {k: str(own) if isinstance(own, Path) else own for k, own in plain.items()}
        yield {**texts, **names}


def _changed(
    overrides: Mapping[str, Any] | Sequence[str], given: Mapping[str, Any]
) -> dict[str, Any] | list[str]:
    """Put what is given as data after the overrides."""
    if isinstance(overrides, Mapping):
        return {**overrides, **given}
    return [*overrides, *(f"{key}={value}" for key, value in given.items())]


def evaluate(
    model: AnyModel,
    data: str | Path | Table,
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
        data: a file, a Hub dataset `owner/name[:config]:split`, a prepared corpus, or a table in
            memory.
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
    return _opened(model, device).evaluate(
        data,
        columns=columns,
        precision=precision,
        batch_tokens=batch_tokens,
        encoding=encoding,
        quoting=quoting,
        max_chars=max_chars,
        quiet=quiet,
    )


@overload
def predict(
    model: Model[P],
    inputs: Inputs,
    *,
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_chars: int | None = None,
) -> Predictions[P]: ...
@overload
def predict(
    model: AnyModel,
    inputs: Inputs,
    *,
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_chars: int | None = None,
) -> Predictions[Any]: ...
def predict(
    model: AnyModel,
    inputs: Inputs,
    *,
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_chars: int | None = None,
) -> Predictions[Any]:
    """Answer inputs, in their order.

    Args:
        model: from `load`, or a run, a folder or a Hub id that `load` takes.
        inputs: texts; for models of pairs, two texts each: `[("a", "b"), ...]`; mappings with the
            task's column names; a table in memory; or, as a `Path`, a file. A single text works
            too.
        columns: the task's names of columns -> the table's; default: as in the training data.
        device: `auto`, `cpu`, `cuda`, ...
        precision: `auto`, `float32`, `bf16` or `int8`: products in 8 bits, on a CPU.
        max_chars: longer texts are refused as mistakes; default: as for `evaluate`.

    Returns:
        a list of answers, which `.to_dataframe()` puts beside the inputs.

    Raises:
        PretuneError: the inputs or the model cannot be used; says what to do.
    """
    own = _opened(model, device)
    return own.predict(inputs, columns=columns, precision=precision, max_chars=max_chars)


def generate(
    model: AnyModel,
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
        decoding: `max_new_tokens=100, temperature=0.8, top_k=40, samples=3, ...`: all fields of
            `pretune.decoding.decoding.Decoding`.

    Returns:
        all continuations, grouped by prompt in the order of the prompts.

    Raises:
        PretuneError: an option makes no sense, or a prompt or the model cannot be used.
    """
    return _opened(model, device).generate(prompts, batch_size=batch_size, **decoding)


def prompt(
    model: AnyModel,
    data: str | Path | Table,
    *,
    train: str | Path | Table | None = None,
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
        data: a labelled file, a Hub dataset `owner/name[:config]:split`, or a table in memory.
        train: where the examples are drawn from; default: from `data`, whose examples are then not
            evaluated.
        device: `auto`, `cpu`, `cuda`, ...
        batch_tokens: tokens at a time; changes memory and speed only.
        encoding: of text files.
        quoting: of CSV and TSV files: `auto`, `standard` or `none`.
        max_chars: longer texts are refused as mistakes; default: 100,000 characters.
        progress: called with the number of questions done and their total number.
        options: `shots=(0, 4), score="pmi", ...`: fields of
            `pretune.evaluation.few_shot.in_context.FewShotOptions`.

    Raises:
        PretuneError: the data, the template, an option or the model cannot be used; says what to
            do.
    """
    chosen = options_from(options)

    def records(source: str | Path | Table) -> Records:
        if isinstance(source, Records):
            return source
        limit = MAX_CHARS if max_chars is None else max_chars
        return _noted(read(source, encoding=encoding, quoting=quoting, max_chars=limit))

    return measure(
        model if isinstance(model, Bundle) else load_bundle(model),
        records(data),
        None if train is None else records(train),
        chosen,
        device=device,
        batch_tokens=batch_tokens,
        progress=progress,
    )


def _noted(records: Records) -> Records:
    """Tell how records were read."""
    for text in records.notes:
        note(text)
    return records


def embed(
    model: AnyModel,
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
    return _opened(model, device, bare=True).embed(
        texts,
        pooling=pooling,
        normalize=normalize,
        prompt=prompt,
        prompt_name=prompt_name,
        precision=precision,
        batch_tokens=batch_tokens,
        max_length=max_length,
    )


def describe(
    *data: str | Path | Table,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    near: float | None = None,
    encoding: str = "utf-8",
    quoting: str = "auto",
) -> Description:
    """Look at data before training: labels, lengths, repeats, leaks between parts, unknown tokens.

    Args:
        data: files, Hub datasets or tables in memory; the first is the training data, and a text of
            a later one that an earlier one has is a leak.
        text: the column, or columns, with the texts; default: those that look like text.
        label: the column with the labels; default: one with a usual name, or else the only one
            whose values repeat.
        tokenizer: one, or where to find it, to count tokens too, and those that become [UNK].
        near: also count rows that are at least so similar to a row of an earlier part, e.g. 0.8.
        encoding: of text files.
        quoting: of CSV and TSV files: `auto`, `standard` or `none`.

    Raises:
        PretuneError: data cannot be read, or have no such column; says what to do.
    """
    if not data:
        raise PretuneError("describe: no data", "Name a file, or give a table in memory.")
    wanted = [text] if isinstance(text, str) else text
    named = {name: name for name in (*(wanted or ()), label) if name is not None}
    return describe_records(
        [_noted(read(own, encoding=encoding, quoting=quoting, columns=named)) for own in data],
        text=wanted,
        label=label,
        tokenizer=find_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer,
        near=near,
    )


def compare(
    models: Sequence[AnyModel] | Mapping[str, AnyModel],
    data: str | Path | Table | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    resamples: int = 5000,
    level: float = 0.95,
    device: str = "auto",
    encoding: str = "utf-8",
    quoting: str = "auto",
    max_chars: int | None = None,
) -> Compared:
    """Compare models on the same data: is one better, or was it luck?

    Figures come with bootstrap intervals, differences with the p-value of a paired randomization
    test.

    Args:
        models: two or more, from `load` or as `load` takes them; the others are compared with the
            first. A mapping gives them names.
        data: a labelled file, a Hub dataset or a table in memory; default: the validation data of
            the first model's run.
        columns: the task's names of columns -> the data's; default: as in the training data.
        resamples: for the intervals and the test.
        level: of the intervals.
        device: `auto`, `cpu`, `cuda`, ...
        encoding: of a text file.
        quoting: of a CSV or TSV file: `auto`, `standard` or `none`.
        max_chars: longer texts are refused as mistakes.

    Raises:
        PretuneError: the models are of several tasks or labels, or the data cannot be used.
    """
    if isinstance(models, str | Path | Bundle):
        raise PretuneError(
            f"compare: expected several models, found {describe_value(models)}",
            "Give them in a list: compare([first, second]).",
        )
    named = dict(models) if isinstance(models, Mapping) else _named(models)
    opened = [_opened(model) for model in named.values()]
    check_tasks([*named], [task_of(model) for model in opened])
    first = next(iter(named.values()))
    records = examined_records(
        str(first.folder if isinstance(first, Bundle) else first),
        task_of(opened[0]),
        data,
        columns=column_names(opened[0], columns),
        encoding=encoding,
        quoting=quoting,
        max_chars=max_chars,
    )
    _noted(records)
    examined = [examine(model, records, device=device) for model in opened]
    return compare_examined([*named], examined, resamples=resamples, level=level)


def _named(models: Sequence[AnyModel]) -> dict[str, AnyModel]:
    """Name models by where they are, and those of one place by their number."""
    named: dict[str, AnyModel] = {}
    for number, model in enumerate(models, start=1):
        place = model.folder if isinstance(model, Bundle) else model
        name = f"model {number}" if place is None else str(place)
        named[name if name not in named else f"{name} ({number})"] = model
    return named


__all__ = [
    "compare",
    "describe",
    "embed",
    "evaluate",
    "generate",
    "load",
    "predict",
    "prompt",
    "resume",
    "train",
    "with_adapter",
]
