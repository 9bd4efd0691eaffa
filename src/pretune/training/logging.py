"""Progress of a run on the terminal, and its figures in log files."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from pretune.checkpoints.atomic_io import atomic_text
from pretune.tasks.classification.counts import shown_figure
from pretune.text.console import PlainConsole
from pretune.text.notebook import in_kernel
from pretune.text.spoken_language import tr
from pretune.text.terminal import hanging, in_line
from pretune.training.live_run import LivePage
from pretune.training.sample_sheet import SheetRow, write_sheet

if TYPE_CHECKING:
    from rich.console import Console
    from torch.utils.tensorboard import SummaryWriter


#: What a bar calls the work of a run.
TRAINING = "training"


@dataclass(frozen=True)
class Step:
    """One entry of the log: the updates since the last entry."""

    step: int  # updates done
    epoch: float  # passes over the data done, with fractions
    loss: float  # mean over the examples (or tokens) of these updates
    learning_rate: float  # of the last update
    gradient_norm: float  # of the last update's mean gradient, before clipping
    tokens_per_second: float  # without the time of evaluation
    parts: Mapping[str, float]  # means of the loss's parts by name

    def figures(self) -> dict[str, float]:
        """The figures by their names in the logs."""
        return {
            "train/loss": self.loss,
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": self.gradient_norm,
            "train/tokens_per_second": self.tokens_per_second,
            **{f"train/{name}": value for name, value in self.parts.items()},
        }


class Sink(Protocol):
    """A log to write figures to."""

    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """Keep figures."""

    def samples(self, sheet: Sequence[SheetRow]) -> None:
        """Keep replies of before and after training, in the place of earlier ones.

        By default a log has no place for them.
        """
        return

    def rewind(self, step: int) -> None:
        """Drop what was written after update `step`: the updates will be made again."""

    def close(self) -> None:
        """Finish writing."""


class JsonLines(Sink):
    """A log with one JSON object per line, readable during the run and after a crash.

    Each line is written at once. What a full disk refuses is kept and written later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._pending = b""  # what a full disk refused

    @override
    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, "epoch": round(epoch, 4), **figures}) + "\n"
        self._pending += line.encode()
        self._write()

    def _write(self) -> None:
        while self._pending:
            self._pending = self._pending[self._file.write(self._pending) :]

    @override
    def rewind(self, step: int) -> None:
        """Drop the lines after update `step`, and half a line that a killed process left."""
        kept = []
        for line in (self.path.read_bytes() + self._pending).decode(errors="replace").splitlines():
            try:
                known = json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                continue  # half a line
            if known:
                kept.append(line + "\n")
        atomic_text(self.path, "".join(kept))
        self._file.close()
        self._file, self._pending = self.path.open("ab", buffering=0), b""

    @override
    def close(self) -> None:
        with self._file:
            self._write()


class SampleFile(Sink):
    """The sample sheet of a run: a file that is replaced at each evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @override
    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        pass  # the figures have other logs

    @override
    def samples(self, sheet: Sequence[SheetRow]) -> None:
        write_sheet(self.path, sheet)

    @override
    def rewind(self, step: int) -> None:
        pass  # the next evaluation writes it anew

    @override
    def close(self) -> None:
        pass  # it is written at once


class TensorBoard(Sink):
    """TensorBoard event files."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        if threading.excepthook is threading.__excepthook__:
            threading.excepthook = _ignore_full_disk
        self.path, self._kind = folder, SummaryWriter
        self._writer: SummaryWriter = SummaryWriter(str(folder))

    @override
    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    @override
    def rewind(self, step: int) -> None:
        """Start a new file that makes TensorBoard drop later points of the earlier files."""
        self._writer.close()
        self._writer = self._kind(str(self.path), purge_step=step + 1)

    @override
    def close(self) -> None:
        self._writer.close()


def _ignore_full_disk(args: threading.ExceptHookArgs) -> None:
    """Keep TensorBoard's thread from printing a traceback for a full disk.

    The next write raises the same error, and `Reporter` says so.
    """
    ours = isinstance(args.exc_value, OSError) and args.thread is not None
    if not (ours and type(args.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(args)


class Reporter:
    """Shows progress on the terminal, or as plain lines without one, and writes figures to logs.

    What is shown goes to standard error by default, so that results can be piped. In a notebook it
    is one display that is updated in place.
    """

    #: The least seconds between two lines of progress without a terminal.
    PLAIN_SECONDS = 5.0

    def __init__(
        self, sinks: tuple[Sink, ...] = (), *, console: Console | None = None, quiet: bool = False
    ) -> None:
        self.console = console or PlainConsole(stderr=True, quiet=quiet)
        self._sinks = list(sinks)
        self._failed: set[str] = set()
        self._page = LivePage() if console is None and not quiet and in_kernel() else None
        self._live = self.console.is_terminal and not quiet and self._page is None
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._bar_task: TaskID | None = None
        self._last_line = 0.0
        self._started = 0.0
        self._first = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        for sink in self._sinks:
            with self._going_on(sink):
                sink.close()
        if self._page is not None:
            self._page.close(failed=exception[0] is not None)

    def rewind(self, step: int) -> None:
        """Drop what the logs hold after update `step`: the updates will be made again."""
        for sink in self._sinks:
            sink.rewind(step)

    def add(self, *sinks: Sink) -> None:
        """Write figures to more logs from now on."""
        self._sinks.extend(sinks)

    def _keep(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        for sink in self._sinks:
            with self._going_on(sink):
                sink.write(step, epoch, figures)

    @contextmanager
    def _going_on(self, sink: Sink) -> Iterator[None]:
        """Let training continue when a log cannot be written; say so once."""
        try:
            yield
        except OSError as error:
            place = str(getattr(sink, "path", type(sink).__name__))
            if place not in self._failed:
                self._failed.add(place)
                self.say(f"{place}: cannot be written ({error.strerror}); training continues")

    def say(self, text: str) -> None:
        """Show a line of text in the language that is spoken."""
        text = tr(text)
        if self._page is not None:
            self._page.say(text)
            return
        self.console.print(hanging(text), soft_wrap=True)

    @contextmanager
    def working(self, what: str, total: int) -> Iterator[Callable[[int], None] | None]:
        """Show a bar; yields a function that takes the number of items done, or None."""
        if self._page is not None and self._page.run.what != TRAINING:
            yield self._page.work(what, total)
            return
        if not self._live or self._bar is not None:
            yield None
            return
        with _bar(self.console, "") as bar:
            task = bar.add_task(tr(what), total=total)
            yield lambda done: bar.update(task, completed=done)

    def begin(self, total: int, done: int = 0) -> None:
        """Start showing training."""
        self._started, self._first = time.monotonic(), done
        if self._page is not None:
            self._page.begin(TRAINING, total, done)
        if self._live:
            self._bar = self._stack.enter_context(_bar(self.console, "[dim]{task.fields[figures]}"))
            self._bar_task = self._bar.add_task(
                tr(TRAINING), total=total, completed=done, figures=""
            )

    def step(self, entry: Step, total: int) -> None:
        """Log an entry, and show it once in a while."""
        self._keep(entry.step, entry.epoch, entry.figures())
        # On a terminal the bar shows it; elsewhere a line every few seconds.
        text = (
            f"loss {entry.loss:.4f}  lr {entry.learning_rate:.2e}  "
            f"{entry.tokens_per_second:,.0f} tokens/s"
        )
        if self._bar is not None and self._bar_task is not None:
            self._bar.update(self._bar_task, completed=entry.step, figures=text)
            return
        if self._page is not None:
            self._page.step(entry.step, entry.loss, text)
            return
        now = time.monotonic()
        if now - self._last_line >= self.PLAIN_SECONDS or entry.step == total:
            self._last_line = now
            each = (now - self._started) / max(entry.step - self._first, 1)
            left = each * (total - entry.step)
            place = f"step {entry.step}/{total}  epoch {entry.epoch:.2f}"
            self.say(f"{place}  {text}  {_duration(left)} left")

    def evaluation(
        self,
        step: int,
        epoch: float,
        metrics: Mapping[str, float],
        seconds: float,
        note: str,
        *,
        details: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Log and show an evaluation, whose `details` may say more of what its figures mean."""
        self._keep(step, epoch, {f"validation/{name}": value for name, value in metrics.items()})
        if self._page is not None:
            self._page.evaluation(step, metrics)
        figures = "  ".join(
            f"{in_line(shown_figure(name, details))} {value:.4f}" for name, value in metrics.items()
        )
        self.say(f"epoch {epoch:.2f}  validation: {figures}  ({seconds:.1f} s){note}")

    def samples(self, sheet: Sequence[SheetRow]) -> None:
        """Keep replies of before and after training, if there are any."""
        if not sheet:
            return
        for sink in self._sinks:
            with self._going_on(sink):
                sink.samples(sheet)


def _bar(console: Console, figures: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn(tr("left")),
        TimeRemainingColumn(),
        *([TextColumn(figures)] if figures else []),
        console=console,
        transient=not figures,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
