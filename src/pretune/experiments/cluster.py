"""Plan a training for other machines, on paper: memory, communication, hours and money.

What is computed is known: 6 FLOPs for each weight and token, and attention (`costs.count_flops`;
Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022, appendix F; Chowdhery et al. 2022, appendix
B). How fast is an assumption, the share of the peak that a model reaches (MFU, model FLOPs
utilization), unless a run has measured it. What is sent follows from the algorithms: in a ring of n
processes (Patarasuk & Yuan 2009) each sends 2 (n - 1) / n of a tensor for a sum that all get, and
(n - 1) / n for each of its halves: all gather what each has, or each gets its part of the sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pretune.bundle.bundle import outline
from pretune.data.arrays import Array
from pretune.errors import RunError
from pretune.experiments.costs import MOMENTS, count_flops
from pretune.experiments.gpu_memory import GpuMemory, Sizes, TracedStep, gpu_memory, trace_step
from pretune.experiments.gpus import Gpu, called, find_gpu
from pretune.recipe.recipe import Recipe
from pretune.recipe.schema import TrainSection
from pretune.training.checkpoint import VALUES, checkpoints
from pretune.training.run_folder import RECIPE, RESULT

#: The share of the peak where none is given or measured. Published runs lie between 0.24 and 0.60
#: (docs/several-machines.md lists them): the hours may be half or twice as many.
USUAL_MFU = 0.4
#: The share of a link's bandwidth that NCCL's rings reach: an assumption. On DGX machines its
#: own tests show 0.75 to 0.8 of NVLink's.
LINK_SHARE = 0.75
#: The share of an update's computation that its last backward pass takes: two products of three.
BACKWARD = 2 / 3
#: AdamW reads weight, gradient and both moments, and writes all but the gradient.
PASSES = 7


@dataclass(frozen=True)
class ClusterOptions:
    """The machines to plan for; raises RunError where they make no sense."""

    gpu: str | None  # a name of gpus.yaml, or of the device file; None: its only one
    gpus: int = 1  # in each machine
    nodes: int = 1  # machines
    price: float | None = None  # of a GPU and hour
    mfu: float | None = None
    measured: str | None = None  # a run on a GPU, which tells the share of its peak
    tokens: float | None = None  # to train on; None: as the recipe says
    device_file: Path | None = None
    spec: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.nodes < 1:
            raise RunError("--gpus and --nodes: at least 1 of each")
        if self.mfu is not None and self.measured is not None:
            raise RunError(
                "--mfu and --measured: give one of them", "A run tells the share itself."
            )
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise RunError(
                f"--mfu {self.mfu:g}: a share of the peak, above 0 and at most 1",
                f"Usual: {USUAL_MFU}.",
            )
        for name, value in (("--price", self.price), ("--tokens", self.tokens)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RunError(f"{name} {value:g}: should be a number above 0")

    @property
    def world(self) -> int:
        """GPUs in all."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Workload:
    """What a run computes, whatever the machines."""

    updates: int
    tokens: int  # trained on, over all epochs
    computed: float  # of these, those that the model is run for (a frozen one is run once)
    flops_per_token: int
    forward_share: float  # of these FLOPs, for the forward pass
    sequences: float  # of an update, on average
    largest: Array  # lengths of the sequences of the largest update
    evaluated: int  # tokens of all evaluations together
    others: int  # bytes of models beside the one that learns


@dataclass(frozen=True)
class Exchange:
    """What processes send for one update."""

    by_gpu: float  # bytes that each GPU sends
    by_machine: float  # bytes of it that leave each machine; 0 for one machine
    seconds: float
    hidden: float  # seconds of it that the computation covers

    @property
    def lost(self) -> float:
        """Seconds for which nothing is computed."""
        return self.seconds - self.hidden


@dataclass(frozen=True)
class ClusterPlan:
    """What a run takes on some machines."""

    gpu: Gpu
    gpus: int  # in each machine
    nodes: int
    precision: str
    parallel: str
    recompute: bool
    peak: float  # FLOP/s of a GPU
    mfu: float
    mfu_from: str  # "assumed", "given", or the run that measured it
    updates: int
    tokens: int
    flops: float  # for training, without what is computed twice
    micro_batch: int  # sequences, the most of a GPU
    accumulate: int
    idle: float  # share of the GPUs' time for which a batch has no sequences for them
    memory: tuple[GpuMemory, ...]  # as the recipe is, and the other ways
    exchange: Exchange
    compute_seconds: float  # of an update
    optimizer_seconds: float  # of an update
    training_seconds: float
    evaluation_seconds: float
    price: float | None
    remarks: tuple[str, ...]

    @property
    def world(self) -> int:
        """GPUs in all."""
        return self.gpus * self.nodes

    @property
    def hours(self) -> float:
        """Hours of training and evaluation."""
        return (self.training_seconds + self.evaluation_seconds) / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs together."""
        return self.hours * self.world

    @property
    def cost(self) -> float | None:
        """What they cost; None without a price."""
        return None if self.price is None else self.price * self.gpu_hours

    @property
    def tokens_per_second(self) -> float:
        """Tokens of training by its seconds, on all GPUs."""
        return self.tokens / self.training_seconds

    @property
    def lost(self) -> float:
        """The share of an update for which GPUs wait for each other's data."""
        return self.exchange.lost / self.update_seconds

    @property
    def update_seconds(self) -> float:
        """Seconds of an update."""
        return self.compute_seconds + self.optimizer_seconds + self.exchange.lost

    @property
    def chosen(self) -> GpuMemory:
        """The memory as the recipe trains."""
        return self.memory[0]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        names = ("world", "hours", "gpu_hours", "cost", "tokens_per_second", "lost")
        values = asdict(self)
        values["memory"] = [
            {**asdict(way), "total": way.total, "fits": way.fits} for way in self.memory
        ]
        values["exchange"]["lost"] = self.exchange.lost
        return {**values, **{name: getattr(self, name) for name in names}}


def plan_cluster(
    options: ClusterOptions, recipe: Recipe, model: nn.Module, work: Workload
) -> ClusterPlan:
    """Work out what a run takes on other machines.

    Args:
        options: the machines.
        recipe: of the run.
        model: on the meta device.
        work: what the run computes.

    Raises:
        RunError: no such GPU, or one without the products of the recipe's precision; a run that
            cannot tell how fast it was.
    """
    gpu, train = find_gpu(options.gpu, options.device_file, options.spec), recipe.train
    precision = "float32" if train.precision == "float32" else "bf16"
    peak = gpu.peak(precision)
    mfu, mfu_from = _share_of_peak(options, precision)
    work = _for_tokens(work, options.tokens, train)
    memory = _ways(gpu, options.world, model, train, work)
    # Seconds of an update: all products by all GPUs, the passes over the weights, the exchange.
    flops = work.computed * work.flops_per_token
    share = math.ceil(work.sequences / options.world)  # of the GPU with the most sequences
    idle = 1 - work.sequences / (share * options.world)
    again = 1 + work.forward_share * train.activation_checkpointing
    rate = options.world * peak * mfu
    compute = flops * again / max(work.updates, 1) / rate / (1 - idle)
    chosen = memory[0]
    stepped = PASSES * chosen.optimizer / MOMENTS / gpu.bandwidth
    sizes = Sizes.of(model, options.world)
    exchange = _exchange(options, gpu, train, sizes, compute)
    forward = work.flops_per_token * work.forward_share
    plan = ClusterPlan(
        gpu=gpu,
        gpus=options.gpus,
        nodes=options.nodes,
        precision=precision,
        parallel=train.parallel,
        recompute=train.activation_checkpointing,
        peak=peak,
        mfu=mfu,
        mfu_from=mfu_from,
        updates=work.updates,
        tokens=work.tokens,
        flops=flops,
        micro_batch=chosen.micro_batch,
        accumulate=train.accumulate,
        idle=idle,
        memory=memory,
        exchange=exchange,
        compute_seconds=compute,
        optimizer_seconds=stepped,
        training_seconds=work.updates * (compute + stepped + exchange.lost),
        evaluation_seconds=work.evaluated * forward / rate,
        price=options.price,
        remarks=(),
    )
    return replace(plan, remarks=tuple(_remarks(plan, options, model, train, work)))


def _for_tokens(work: Workload, tokens: float | None, train: TrainSection) -> Workload:
    """Change the number of updates to that for so many tokens, in whole batches.

    Where the data are a sample that is smaller than a batch, it is repeated to fill one.
    """
    if tokens is None or not work.updates:
        return work
    mean, factor = float(np.mean(work.largest)), tokens / work.tokens
    whole = train.batch_size or max(1, int((train.batch_tokens or 0) // mean))
    updates, largest, sequences = math.ceil(work.updates * factor), work.largest, work.sequences
    if whole > len(largest):
        largest, sequences = np.resize(largest, whole), float(whole)
        updates = math.ceil(tokens / (whole * mean))
    return replace(
        work,
        updates=updates,
        tokens=round(tokens),
        computed=tokens,
        sequences=sequences,
        largest=largest,
        evaluated=round(work.evaluated * factor),
    )


def _share_of_peak(options: ClusterOptions, precision: str) -> tuple[float, str]:
    if options.measured is not None:
        return measured_mfu(options.measured, precision), options.measured
    return (USUAL_MFU, "assumed") if options.mfu is None else (options.mfu, "given")


def measured_mfu(run: str, precision: str) -> float:
    """Return the share of its GPUs' peak that a finished run reached.

    Args:
        run: its folder.
        precision: in which it computed: "bf16" or "float32".

    Raises:
        RunError: no finished run, or one on something that gpus.yaml does not know.
    """
    folder = Path(run)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        tokens, seconds = int(result["tokens"]), float(result["seconds"])
        length = max(1, round(tokens / int(result["examples"])))
        device = str(result["environment"]["device"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        raise RunError(
            f"--measured {run}: no finished run with updates is there",
            "Name the folder of a run, which has a result.json.",
        ) from None
    gpu = called(device)
    if gpu is None:
        raise RunError(
            f"--measured {run}: it was trained on {device}, whose peak is not known",
            "Give --mfu, or measure on a GPU of the table.",
        )
    train = Recipe.load(str(folder / RECIPE)).train
    if train.freeze != "none" or train.lora is not None:
        raise RunError(
            f"--measured {run}: not all of its weights learned", "Name a run that trained them all."
        )
    if (train.precision == "float32") != (precision == "float32"):
        raise RunError(
            f"--measured {run}: it computed with train.precision={train.precision}",
            "Name a run in the precision of this recipe.",
        )
    processes = _processes(folder)
    rate = tokens / seconds * count_flops(outline(run).model, length).training_per_token
    mfu = rate / (processes * gpu.peak(precision))
    if mfu > 1:
        raise RunError(
            f"--measured {run}: {processes} x {gpu.name} cannot have computed {rate:.3g} FLOP/s",
            "Name another run, or give --mfu.",
        )
    return mfu


def _processes(folder: Path) -> int:
    """Return the number of processes of a run: its checkpoints have a generator for each."""
    for _, place in checkpoints(folder):
        try:
            values = json.loads((place / VALUES).read_text(encoding="utf-8"))
            return sum(str(name).startswith("rank") for name in values) or 1
        except (OSError, ValueError, TypeError):
            continue
    raise RunError(
        f"--measured {folder}: it has no checkpoint, which would tell the number of its GPUs",
        "Name a run with its checkpoints, or give --mfu.",
    )


def _ways(
    gpu: Gpu, world: int, model: nn.Module, train: TrainSection, work: Workload
) -> tuple[GpuMemory, ...]:
    """Work out the memory as the recipe trains, and in the other ways."""
    sizes = Sizes.of(model, world)
    kinds = ("ddp", "fsdp") if world > 1 else (train.parallel,)
    first = (train.parallel, train.activation_checkpointing)
    others = [(kind, again) for kind in kinds for again in (False, True)]
    steps: dict[bool, TracedStep] = {}
    ways = []
    for kind, again in [first, *(way for way in others if way != first)]:
        if again not in steps:
            steps[again] = _step(model, train, work, world, train.accumulate, again=again)
        ways.append(_memory(gpu, sizes, steps[again], train, work, world, kind, again=again))
    return tuple(ways)


def _step(
    model: nn.Module,
    train: TrainSection,
    work: Workload,
    world: int,
    accumulate: int,
    *,
    again: bool,
) -> TracedStep:
    """Trace the largest micro-batch of a GPU."""
    batch = math.ceil(len(work.largest) / (world * accumulate))
    length = math.ceil(float(np.mean(work.largest)))
    parts = min(accumulate, math.ceil(len(work.largest) / world))
    how = {"bf16": train.precision != "float32", "recompute": again, "again": parts > 1}
    return trace_step(model, batch, length, **how)


def _memory(
    gpu: Gpu,
    sizes: Sizes,
    step: TracedStep,
    train: TrainSection,
    work: Workload,
    world: int,
    parallel: str,
    *,
    again: bool,
    accumulates: bool | None = None,
) -> GpuMemory:
    return gpu_memory(
        sizes,
        step,
        parallel=parallel,
        recompute=again,
        processes=world,
        accumulates=train.accumulate > 1 if accumulates is None else accumulates,
        average=train.ema is not None,
        others=work.others,
        capacity=gpu.memory,
    )


def _exchange(
    options: ClusterOptions, gpu: Gpu, train: TrainSection, sizes: Sizes, compute: float
) -> Exchange:
    """Work out what is sent for an update, how long it takes, and what hides it."""
    world = options.world
    if world == 1:
        return Exchange(0.0, 0.0, 0.0, 0.0)
    half = (world - 1) / world
    if train.parallel == "ddp":
        # One sum of all gradients, during the last backward pass.
        sent = 2 * half * sizes.trained
        cover = compute / train.accumulate * BACKWARD
    else:
        # Each micro-batch gathers the layers forward and backward, and the rest once; the last one
        # cuts the sum of the gradients up. The next layer is gathered while one computes.
        gathered = 2 * (sizes.parameters - sizes.rest) + sizes.rest
        sent = half * (train.accumulate * gathered + sizes.trained)
        cover = compute
    # A ring is as slow as its slowest link. Through the network goes what one GPU of each machine
    # sends to the next machine; several rings share it.
    slowest = gpu.link if options.gpus > 1 else gpu.network
    if options.nodes > 1:
        slowest = min(slowest, gpu.network)
    seconds = sent / (LINK_SHARE * slowest)
    out = sent if options.nodes > 1 else 0.0
    return Exchange(sent, out, seconds, min(seconds, cover))


def _remarks(
    plan: ClusterPlan,
    options: ClusterOptions,
    model: nn.Module,
    train: TrainSection,
    work: Workload,
) -> Iterator[str]:
    """Tell what does not fit or goes to waste, and the ways out."""
    if not plan.chosen.fits:
        yield from _ways_out(plan, options, model, train, work)
    if plan.idle >= 0.1:
        yield (
            f"An update has {work.sequences:,.0f} sequences for {plan.world} GPUs: they have "
            f"nothing to do for {plan.idle:.0%} of the time. Take a larger batch, or fewer GPUs."
        )
    if plan.lost >= 0.1:
        yield (
            f"GPUs wait for data of others for {plan.lost:.0%} of the time. Larger batches, "
            "a faster network, or fewer machines help."
        )
    if plan.parallel == "fsdp" and plan.accumulate > 1 and plan.world > 1:
        yield (
            "Under fsdp with train.accumulate above 1 each GPU holds the gradients of the whole "
            "model, and gathers the model for each part of a batch: train.accumulate=1 with "
            "train.activation_checkpointing=true may take less."
        )


def _ways_out(
    plan: ClusterPlan,
    options: ClusterOptions,
    model: nn.Module,
    train: TrainSection,
    work: Workload,
) -> Iterator[str]:
    """List the smallest changes with which the run fits."""
    found = False
    for way in plan.memory[1:]:
        if way.fits:
            found = True
            keys = {
                "train.activation_checkpointing": (plan.recompute, way.recompute),
                "train.parallel": (plan.parallel, way.parallel),
            }
            changes = " ".join(
                f"{key}={str(new).lower()}" for key, (old, new) in keys.items() if new != old
            )
            yield f"It fits with {changes}: {_gib(way.total)} GiB."
    # Smaller micro-batches: twice as many, and so on, down to single sequences.
    sizes = Sizes.of(model, options.world)
    most, parts = math.ceil(len(work.largest) / options.world), train.accumulate
    while parts < most:
        parts = min(2 * parts, most)
        step = _step(model, train, work, options.world, parts, again=plan.recompute)
        how: dict[str, Any] = {"again": plan.recompute, "accumulates": True}
        way = _memory(plan.gpu, sizes, step, train, work, options.world, plan.parallel, **how)
        if way.fits:
            found = True
            yield f"It fits with train.accumulate={parts}: {_gib(way.total)} GiB."
            break
    if not found:
        yield from _more_gpus(plan, model, train, work)


def _more_gpus(
    plan: ClusterPlan, model: nn.Module, train: TrainSection, work: Workload
) -> Iterator[str]:
    """Look for a number of GPUs whose shards fit, with recomputation."""
    world = plan.world
    while world < len(work.largest):
        world = min(2 * world, len(work.largest))
        step = _step(model, train, work, world, 1, again=True)
        how: dict[str, Any] = {"again": True, "accumulates": False}
        way = _memory(plan.gpu, Sizes.of(model, world), step, train, work, world, "fsdp", **how)
        if way.fits:
            yield (
                f"It fits on {world} GPUs with train.parallel=fsdp train.accumulate=1 "
                f"train.activation_checkpointing=true: {_gib(way.total)} GiB on each."
            )
            return
    yield (
        "No number of these GPUs holds it: take GPUs with more memory, a smaller model or "
        "train.lora."
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f}"
