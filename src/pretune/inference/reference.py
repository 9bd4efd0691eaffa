"""Scores of a frozen reference, which become targets of the features that are compared with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from pretune.bundle.bundle import Bundle, load
from pretune.data.arrays import Array
from pretune.data.batch import Features, FeatureSet
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
    scores: Array | None = None
    done = 0
    with evaluation_mode(model):
        for which in batches_by_length(features.lengths, BATCH_TOKENS):
            batch = features.batch(which).to(device)
            with precision_context(device, precision):
                own = task.reference_scores(model, batch).float().cpu().numpy()
            if scores is None:
                scores = np.zeros((len(features), own.shape[1]), dtype=np.float32)
            scores[batch.index.numpy()] = own
            done += len(which)
            if progress is not None:
                progress(done)
    return np.zeros((0, 1), dtype=np.float32) if scores is None else scores


def with_scores(features: F, scores: Array) -> F:
    """Return features that have the scores `[N, K]` of a reference among their targets."""
    assert isinstance(features, FeatureSet)  # noqa: S101 - records are compared, never a corpus
    return replace(features, targets={**features.targets, REFERENCE: scores})


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
            _check_vocabulary(bundle, reference, grows=seed is not None)
        # As in the run, new rows are drawn right after the loading.
        rows = bundle.backbone.config.size("vocab_size")
        if seed is not None and reference.backbone.config.size("vocab_size") < rows:
            resize_vocabulary(reference.model, rows)
    return reference.model


def _check_vocabulary(bundle: Bundle, reference: Bundle, *, grows: bool) -> None:
    """Check that a reference gives every token of a model the id that it has there.

    Where it `grows`, it may lack the model's last tokens.
    """
    known = reference.tokenizer.engine.get_vocab(with_added_tokens=True)
    end = reference.tokenizer.vocab_size if grows else bundle.tokenizer.vocab_size
    ids = bundle.tokenizer.engine.get_vocab(with_added_tokens=True)
    differing = sorted((i, token) for token, i in ids.items() if i < end and known.get(token) != i)
    if not differing:
        return
    number, token = differing[0]
    there = "lacks it" if token not in known else f"has it as {known[token]}"
    raise CheckpointError(
        f"the reference {reference.folder} numbers tokens in another way than the model "
        f"{bundle.folder}: {token!r} is {number} in the model, and the reference {there} "
        f"(tokens that differ: {len(differing):,})",
        "Probabilities can be compared only token by token: name a reference with the tokenizer "
        "of the model, or task.reference=start.",
    )
