"""Checkpoints of a run: the model with the state of the run, written so that none can be lost.

checkpoints/step-000300/
    config.json, model.safetensors, tokenizer...   the model, as everybody reads it
    trainer.safetensors, trainer.json              the state of the run (training/state.py)
    manifest.json                                  sizes and SHA-256 of all that
"""

from __future__ import annotations

import copy
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import override

from pretune.bundle.bundle import Bundle, save
from pretune.checkpoints.atomic_io import atomic_folder, point, remove_folder, sweep
from pretune.checkpoints.manifest import find_damage, write_manifest
from pretune.checkpoints.run_copy import CHECKPOINT_NAME
from pretune.errors import CheckpointError, PretuneError, RunError
from pretune.training.adapters import weights_in
from pretune.training.distributed import World, is_shard, is_sharded
from pretune.training.state import CheckpointStore, SavedCheckpoint, TrainingState

T = TypeVar("T")

TENSORS, VALUES, SHARDS = "trainer.safetensors", "trainer.json", "shards"
FOLDER = "checkpoints"
#: From this many bytes of weights on, checkpoints are written while training goes on.
LARGE = 1 << 30


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a run with their numbers of updates, oldest first, whole or not."""
    numbered = []
    if (run / FOLDER).is_dir():
        named = ((CHECKPOINT_NAME.fullmatch(path.name), path) for path in (run / FOLDER).iterdir())
        numbered = [(int(m[1]), int(m[2] or 0), path) for m, path in named if m and path.is_dir()]
    return [(step, path) for step, _, path in sorted(numbered)]


def newest_whole(
    run: Path, at_most: int | None = None, say: Callable[[str], None] = lambda text: None
) -> Path | None:
    """The newest undamaged checkpoint of at most `at_most` updates, else the oldest of all."""
    fallback = None
    for step, path in reversed(checkpoints(run)):
        damage = find_damage(path)
        if damage is not None:
            say(f"{damage}; going back to an older checkpoint")
        elif at_most is None or step <= at_most:
            return path
        else:
            fallback = path
    return fallback


def read_values(path: Path) -> dict[str, Any]:
    """Read the JSON values of a state, without its tensors."""
    with _readable(path):
        values: dict[str, Any] = json.loads((path / VALUES).read_text(encoding="utf-8"))
        return values


def read_state(path: Path) -> TrainingState:
    """Read the state in a checkpoint that is whole."""
    values, shards = read_values(path), path / SHARDS
    with _readable(path):
        return TrainingState(load_file(path / TENSORS), values, shards if shards.is_dir() else None)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: holds a model but not the state of a run ({Path(error.filename).name})",
            "Train on from its weights instead: pretune train RECIPE model.from=...",
        ) from None
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the state of the run is not readable ({error})") from None


class RunCheckpoints(CheckpointStore):
    """Writes the checkpoints of a run, and reads them back.

    At no moment is `best` or `last` incomplete, and an old checkpoint is removed only when enough
    newer ones are whole. Together with each checkpoint that is kept, the one that was best at its
    time is kept too, so that a run can continue from any of them.
    """

    def __init__(
        self,
        run: Path,
        bundle: Bundle,
        *,
        keep: int = 1,  # of the newest, in addition to the best
        background: bool | None = None,  # write in a thread; default: large models and GPUs
        world: World | None = None,  # only its main process writes
        extra: dict[str, Any] | None = None,  # JSON values to keep with each checkpoint
        say: Callable[[str], None] = lambda text: None,
        published: Callable[[], None] = lambda: None,  # called when a checkpoint is the last
    ) -> None:
        self._published = published
        self.run, self.bundle, self.keep, self.say = run, bundle, keep, say
        self.world, self.extra = world or World(), extra or {}
        self._skeleton = _skeleton(bundle.model)  # from before it is sharded
        size = sum(p.numel() * p.element_size() for p in bundle.model.parameters())
        self._large, self._asked = size >= LARGE, background
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._group: dist.ProcessGroup | None = None  # all processes, for writing shards
        self._known: dict[Path, tuple[tuple[Any, ...], str | None]] = {}

    @override
    def save(self, step: int, state: TrainingState, *, best: bool) -> None:
        """Keep the model as it is now, with the state of the run.

        With `background`, this returns as soon as a copy is made; one write runs at a time.

        Raises:
            RunError: this checkpoint or the one before cannot be written; earlier ones are intact.
        """
        self.flush()  # one write at a time
        values = json.dumps({**state.values, **self.extra}, ensure_ascii=False)
        sharded = is_sharded(self.bundle.model)
        if not sharded and not self.world.main:
            return
        # In this thread, straight from the model; or in another one, from a copy.
        background = self._in_background()
        copied = _copied if background else _on_host
        tensors = {name: copied(value) for name, value in state.tensors.items()}
        if sharded:
            work = self._shared_work(step, tensors, copied, values, best=best)
        else:
            bundle = self._snapshot() if background else self.bundle
            work = partial(self._write, step, bundle, tensors, values, best)
        if not background:
            work()
            return

        def watched() -> None:
            try:
                work()
            except BaseException as error:  # `flush` raises it again
                self._failed = error

        # A daemon: asking twice to stop does not wait for it, and half-written files are dropped.
        self._thread = threading.Thread(target=watched, name="checkpoint", daemon=True)
        self._thread.start()

    def _in_background(self) -> bool:
        """Whether to write while training goes on: as asked, else for large models and on GPUs."""
        if self._asked is not None:
            return self._asked
        return self._large or any(p.device.type != "cpu" for p in self.bundle.model.parameters())

    def _snapshot(self) -> Bundle:
        """A copy of the bundle with copied weights, and with the task as it is calibrated now."""
        weights = {name: _copied(tensor) for name, tensor in self._weights()}
        task = copy.copy(self.bundle.task)  # the next evaluation may choose another threshold
        return replace(self.bundle, model=_fleshed(self._skeleton, weights), task=task)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the model by name."""
        model = self.bundle.model
        yield from (*model.named_parameters(), *model.named_buffers())

    def _shared_work(
        self,
        step: int,
        tensors: dict[str, Tensor],
        copied: Callable[[Tensor], Tensor],
        values: str,
        *,
        best: bool,
    ) -> Callable[[], None]:
        """Make ready to write from all processes: each its shards, the main one the whole model.

        What the returned function exchanges goes through a group of its own, on the host, so that
        it may run beside the training.
        """
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        weights = {name: copied(tensor) for name, tensor in self._weights()}
        bundle = replace(self.bundle, task=copy.copy(self.bundle.task))
        return partial(self._write_together, step, bundle, weights, tensors, values, best)

    def _write_together(
        self,
        step: int,
        bundle: Bundle,
        weights: dict[str, Tensor],
        tensors: dict[str, Tensor],
        values: str,
        best: bool,
    ) -> None:
        """Write in all processes; what one of them cannot do, none has done."""
        from pretune.training.sharded import put_together, write_shards  # slow to import

        world, group = self.world, self._group
        assert group is not None  # noqa: S101 - for the type checker
        shards = {name: value for name, value in tensors.items() if is_shard(value)}
        others = {name: value for name, value in tensors.items() if name not in shards}
        target = world.gather(self._free_name(step), group)[0]
        with ExitStack() as stack:
            # The main process makes the folder, and each writes its shards of the state.
            opened = partial(stack.enter_context, atomic_folder(target))
            aside = self._agreed(target, opened)
            each = partial(write_shards, aside / SHARDS, shards, group)
            self._agreed(target, each, everybody=True)
            # The whole model comes together in the main process alone, tensor by tensor.
            model = {
                name: put_together(value, world.rank, world.size, group)
                if is_shard(value)
                else value
                for name, value in weights.items()
            }

            def finish() -> None:
                whole = {name: value for name, value in model.items() if value is not None}
                filled = replace(bundle, model=_fleshed(self._skeleton, whole))
                self._fill(aside, filled, others, values)
                stack.close()  # it gets its name
                self._publish(target, best=best)

            self._agreed(target, finish)

    def _agreed(self, target: Path, act: Callable[[], T], *, everybody: bool = False) -> T:
        """Act in the main process, or in all; if one of them fails, all do.

        Returns what the main process got.
        """
        result, error = None, None
        try:
            result = act() if self.world.main or everybody else None
        except Exception as caught:  # raised again once all know
            error = caught
        reason = None if error is None else write_reason(error)
        answers = self.world.gather((result if self.world.main else None, reason), self._group)
        reasons = [reason for _, reason in answers if reason is not None]
        if error is not None and not isinstance(error, OSError | SafetensorError | PretuneError):
            raise error
        if reasons:
            raise self._unwritten(target, reasons[0])
        given: T = answers[0][0]  # type: ignore[assignment]
        return given

    @override
    def flush(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def finish(self) -> None:
        """Wait like `flush` in a run that fails anyway: only report what could not be written."""
        try:
            self.flush()
        except RunError as error:
            self.say(str(error))

    @override
    def newest(self, at_most: int | None = None) -> SavedCheckpoint | None:
        """Read the newest whole checkpoint (see `newest_whole`), and remove newer ones."""
        self.flush()
        path = self.world.decided(lambda: newest_whole(self.run, at_most, self.say))
        if path is None:
            return None
        saved = self.read(path)
        self.world.wait()
        if self.world.main:
            self._drop_newer(path)
        return saved

    def read(self, path: Path) -> SavedCheckpoint:
        """Read a whole checkpoint to continue from, and let `last` and `best` fit it.

        They may not: a process can be killed between writing a checkpoint and pointing at it.
        """
        state, weights = read_state(path), weights_in(path, self.bundle)
        if self.world.main:
            try:
                self._point_back(path)
            except OSError as error:
                raise self._unwritten(self.run / "last", write_reason(error)) from None
        return SavedCheckpoint(str(path), weights, state)

    def _point_back(self, path: Path) -> None:
        pointed = {"last": path}
        step = _best_step(path)
        if step is not None:
            best = self._best_of(path)
            if best is None:
                self.say(f"the best model so far, of update {step}, is damaged or gone")
            else:
                pointed["best"] = best
        for name, target in pointed.items():
            if (self.run / name).resolve() != target.resolve():
                point(self.run / name, target)

    def _best_of(self, path: Path) -> Path | None:
        """The checkpoint that was the best when another was written, if it is whole."""
        # A run that was rolled back may have reached a step twice: the newest counts, of those that
        # were there at the time.
        step, known = _best_step(path), checkpoints(self.run)
        so_far = known[: [other for _, other in known].index(path) + 1]
        matching = (other for at, other in reversed(so_far) if at == step)
        return next((other for other in matching if self._is_whole(other)), None)

    def _write(
        self, step: int, bundle: Bundle, tensors: dict[str, Tensor], values: str, best: bool
    ) -> None:
        target = self._free_name(step)
        try:
            with atomic_folder(target) as folder:
                self._fill(folder, bundle, tensors, values)
            self._publish(target, best=best)
        except (OSError, SafetensorError) as error:
            raise self._unwritten(target, write_reason(error)) from None

    @staticmethod
    def _fill(folder: Path, bundle: Bundle, tensors: dict[str, Tensor], values: str) -> None:
        save(bundle, folder)
        save_file(tensors, folder / TENSORS)
        (folder / VALUES).write_text(values, encoding="utf-8")
        write_manifest(folder)

    def _publish(self, target: Path, *, best: bool) -> None:
        """Make a checkpoint that is complete the last (and the best), and remove old ones."""
        self._known[target] = _signature(target), None  # just written, so undamaged
        point(self.run / "last", target)
        if best:
            point(self.run / "best", target)
        self._prune()
        self._published()

    def _unwritten(self, target: Path, reason: str) -> PretuneError:
        # Tell what is still there to continue from.
        known = (path for _, path in reversed(checkpoints(self.run)) if path != target)
        whole = next((path for path in known if self._is_whole(path)), None)
        kept = "" if whole is None else f"; {whole} is intact"
        return RunError(
            f"{target}: the checkpoint cannot be written ({reason}){kept}",
            f"Make room, then go on: pretune train --resume {self.run}",
        )

    def _free_name(self, step: int) -> Path:
        """A new folder for a step, which a run that was rolled back may reach twice."""
        target = self.run / FOLDER / f"step-{step:06d}"
        number = 0
        while os.path.lexists(target):
            number += 1
            target = target.with_name(f"step-{step:06d}.{number}")
        return target

    def _prune(self) -> None:
        """Remove what is neither a best checkpoint nor among the newest whole ones."""
        kept = {(self.run / name).resolve() for name in ("best", "last")}
        whole = 0
        for _, path in reversed(checkpoints(self.run)):
            # Damaged ones among the newest stay for people to look at, but do not count.
            if whole < self.keep:
                if self._is_whole(path):
                    whole += 1
                    best = self._best_of(path)
                    kept |= set() if best is None else {best.resolve()}
            elif path.resolve() not in kept:
                self._remove(path)
        sweep(self.run / FOLDER)

    def _remove(self, path: Path) -> None:
        try:
            remove_folder(path)
            self._known.pop(path, None)
        except OSError as error:
            self.say(f"{path}: cannot be removed ({error.strerror})")

    def _is_whole(self, path: Path) -> bool:
        """Whether a checkpoint is undamaged; read in full only if it changed since last time."""
        signature = _signature(path)
        known, damage = self._known.get(path, (None, None))
        if known != signature:
            damage = find_damage(path)
            if damage is not None:
                self.say(f"{damage}; it does not count as a checkpoint")
            self._known[path] = signature, damage
        return damage is None

    def _drop_newer(self, path: Path) -> None:
        """Remove later checkpoints: damaged, or of updates now undone. A whole best stays."""
        best = (self.run / "best").resolve()
        known = [other for _, other in checkpoints(self.run)]
        for other in reversed(known[known.index(path) + 1 :]):
            if other.resolve() != best or not self._is_whole(other):
                self._remove(other)


def _best_step(path: Path) -> int | None:
    """The update after which the model was best when a checkpoint was written."""
    try:
        step = read_values(path)["course"]["best_step"]
    except (CheckpointError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def write_reason(error: Exception) -> str:
    """Say in the system's words why a file could not be written."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = re.search(r"\(os error (\d+)\)", str(error))  # in the words of Rust
    return os.strerror(int(number[1])) if number else str(error)


def _signature(folder: Path) -> tuple[Any, ...]:
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _on_host(tensor: Tensor) -> Tensor:
    """The same values on the host, copied only if they are not there; a shard stays one."""
    return tensor.detach() if is_shard(tensor) else tensor.detach().cpu().contiguous()


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the host, which training does not change any more; a shard stays one."""
    copied = tensor.detach().to("cpu", copy=True)
    return copied if is_shard(tensor) else copied.contiguous()


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model without weights."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return _fleshed(model, {name: tensor.detach().to("meta") for name, tensor in tensors})


def _fleshed(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of a model with other weights; shared ones stay shared."""
    # deepcopy takes what it finds in the memo for copied already.
    memo: dict[int, Any] = {id(p): nn.Parameter(weights[n]) for n, p in model.named_parameters()}
    memo |= {id(buffer): weights[name] for name, buffer in model.named_buffers()}
    return copy.deepcopy(model, memo)
