"""Scores of a frozen reference, which become targets of the features that are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle, load
from pretune.data.arrays import Array, ranges
from pretune.data.batch import Features, FeatureSet, PackedBatch
from pretune.data.batch_order import batches_by_length
from pretune.errors import CheckpointError, PretuneError
from pretune.inference.predict import task_of
from pretune.inference.rewards import named_reward, reward_function
from pretune.inference.runtime import evaluation_mode, precision_context
from pretune.models.resize import resize_vocabulary
from pretune.tasks.base import (
    REFERENCE,
    ComparesWithReference,
    HasReference,
    MakesExperience,
)

F = TypeVar("F", bound=Features)

#: Tokens at a time. Batching changes the scores by rounding, so nobody may choose it.
BATCH_TOKENS = 8192


@torch.no_grad()
def reference_scores(
    task: ComparesWithReference,
    model: nn.Module,
    features: Features,
    *,
    device: torch.device,
    precision: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Array:
    """Score features by a reference.

    Args:
        task: whose features these are.
        model: the reference, on the device; its mode is the same afterwards.
        features: what to score.
        device: where to compute.
        precision: as in training.
        progress: called with the number of features done.

    Returns:
        `[N, K]` float32: the scores of each feature.
    """
    assert isinstance(features, FeatureSet)  # noqa: S101 - records are compared, never a corpus
    scores = frozen_outputs(
        lambda batch: {REFERENCE: task.reference_scores(model, batch).float()},
        [model],
        features,
        device=device,
        precision=precision,
        progress=progress,
    )
    return scores.get(REFERENCE, np.zeros((0, 1), dtype=np.float32))


@torch.no_grad()
def frozen_outputs(
    outputs: Callable[[PackedBatch], Mapping[str, Tensor]],
    models: Sequence[nn.Module],
    features: FeatureSet,
    *,
    device: torch.device,
    precision: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Array]:
    """Run models that never change over features, once.

    Args:
        outputs: runs them on a batch; returns arrays by name, by feature (`[B, ...]`) or by token
            (`[T, ...]`), in the order of the batch.
        models: the ones that it runs, on the device; their mode is the same afterwards.
        features: what to read.
        device: where to compute.
        precision: as in training.
        progress: called with the number of features done.

    Returns:
        arrays by name, `[N, ...]` or as long as the features' tokens; none without features.
    """
    arrays: dict[str, Array] = {}
    done = 0
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluation_mode(model))
        for which in batches_by_length(features.lengths, BATCH_TOKENS):
            batch = features.batch(which).to(device)
            with precision_context(device, precision):
                own = {name: v.cpu().numpy() for name, v in outputs(batch).items()}
            # Batches are in the order of lengths; arrays are in that of the features.
            index = batch.index.numpy()
            rows = ranges(features.starts[:-1][index], features.lengths[index])
            for name, values in own.items():
                by_feature = len(values) == len(index)
                size = len(features) if by_feature else len(features.tokens)
                if name not in arrays:
                    arrays[name] = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
                arrays[name][index if by_feature else rows] = values
            done += len(which)
            if progress is not None:
                progress(done)
    return arrays


def with_scores(features: F, scores: Array) -> F:
    """Return features that have the scores `[N, K]` of a reference among their targets."""
    return with_targets(features, {REFERENCE: scores})


def with_targets(features: F, arrays: Mapping[str, Array]) -> F:
    """Return features with further targets, by feature or by token."""
    assert isinstance(features, FeatureSet)  # noqa: S101 - a corpus has none kept
    return replace(features, targets={**features.targets, **arrays})


def compared(bundle: Bundle, features: F, device: torch.device) -> F:
    """Return the features as the evaluation of a trained model needs them.

    For a task that has a reference, the one that the model was trained beside is loaded and scores
    the features; for any other task they stay as they are.

    Raises:
        CheckpointError: the reference is not where it was in training.
    """
    task = task_of(bundle)
    if not isinstance(task, HasReference):
        return features
    equip(bundle, task, device)
    if not isinstance(task, ComparesWithReference) or task.reference is None:
        return features
    held = task.reference_model
    model = held if isinstance(held, nn.Module) else load_reference(bundle, task).to(device)
    return with_scores(features, reference_scores(task, model, features, device=device))


def equip(bundle: Bundle, task: HasReference, device: torch.device) -> None:
    """Give a task what the replies of an evaluation are scored by.

    That is its reward, its judge, and the reference that its model was trained beside; where it has
    none, or nothing is written, it gets none.

    Raises:
        PretuneError: the reference is not where it was in training, or the reward cannot be made.
    """
    tokenizer = bundle.tokenizer
    if isinstance(task, MakesExperience) and task.rewarding is None:
        spec = named_reward(task)
        task.rewarding = reward_function(spec, device=device, tokenizer=tokenizer)
    if task.judge is not None and task.judging is None:
        task.judging = reward_function(task.judge, device=device, tokenizer=tokenizer, key="judge")
    needed = task.reference is not None and task.writes_in_evaluations
    if needed and task.reference_model is None:
        task.reference_model = frozen(load_reference(bundle, task), device)


def frozen(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a model as a reference is used: on the device, in evaluation mode, never trained."""
    return model.to(device).eval().requires_grad_(False)


def load_reference(bundle: Bundle, task: HasReference) -> nn.Module:
    """Load the reference that a model is compared with.

    The model before training gets again what the run added to its vocabulary.

    Args:
        bundle: the model.
        task: of the model; it stays as it is, bound to the tokenizer of the model.

    Raises:
        CheckpointError: the reference is not known, not there any more, or numbers tokens in
            another way than the model.
    """
    source = task.reference if task.reference != "start" else task.reference_source
    hint = "Say where the reference is now: --set reference=FOLDER."
    if source is None:
        raise CheckpointError("the model does not say what it was compared with", hint)
    # Loading binds a task to the tokenizer it loads, and this one belongs to the model.
    live = task_of(bundle)
    own = live.with_state(live.state())
    seed = task.reference_seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        try:
            reference = load(source, task=own)
        except PretuneError as error:
            raise CheckpointError(
                f"the reference {source} cannot be loaded: {error}", hint
            ) from None
        # The run itself began with `start`, maybe with another tokenizer than lies beside it.
        if seed is None or task.reference != "start":
            check_vocabulary(
                bundle,
                reference,
                "Probabilities can be compared only token by token: name a reference with the "
                "tokenizer of the model, or task.reference=start.",
                grows=seed is not None,
            )
        # As in the run, new rows are drawn right after the loading.
        rows = bundle.backbone.config.size("vocab_size")
        if seed is not None and reference.backbone.config.size("vocab_size") < rows:
            resize_vocabulary(reference.model, rows)
    return reference.model


def check_vocabulary(
    bundle: Bundle, reference: Bundle, hint: str, *, what: str = "reference", grows: bool = False
) -> None:
    """Check that a reference gives every token of a model the id that it has there.

    Args:
        bundle: the model.
        reference: what it is compared with.
        hint: the way out where it does not.
        what: the name of the reference for people.
        grows: whether the reference may lack the model's last tokens.

    Raises:
        CheckpointError: it does not; names the first token that differs.
    """
    known = reference.tokenizer.engine.get_vocab(with_added_tokens=True)
    end = reference.tokenizer.vocab_size if grows else bundle.tokenizer.vocab_size
    ids = bundle.tokenizer.engine.get_vocab(with_added_tokens=True)
    differing = sorted((i, token) for token, i in ids.items() if i < end and known.get(token) != i)
    if not differing:
        return
    number, token = differing[0]
    there = "lacks it" if token not in known else f"has it as {known[token]}"
    which = "with random weights" if bundle.folder is None else str(bundle.folder)
    raise CheckpointError(
        f"the {what} {reference.folder} numbers tokens in another way than the model {which}: "
        f"{token!r} is {number} in the model, and the {what} {there} "
        f"(tokens that differ: {len(differing):,})",
        hint,
    )
