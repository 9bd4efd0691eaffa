"""Every figure of a GPU that the docs want, in under ten minutes: a table in Markdown and a JSON.

    python bench/gpu.py
    python bench/gpu.py --only gpt fsdp --out bench/results
    python bench/gpu.py --dry                 # tiny sizes on the CPU: does the script run?

Each part runs in a process of its own with a limit of seconds, so that one that hangs or crashes
costs no other part its figures. A part that is cut short, or that lacks a package, is named below
the table. Nothing is downloaded: texts are words drawn at random, with the lengths of the real ones
where those matter, and weights are random, as speed does not depend on their values.

    kernels    which of FlashAttention's variants give the equation's numbers here
    gpt        GPT-2 124M, 1,024 tokens, bf16: pretune, the same with `train.compile`, a plain
               PyTorch loop, and that loop under torch.compile, as nanoGPT trains
    gpt-small  4 layers, 128 wide: what an update costs besides its products
    finetune   pairs with the lengths of MRPC, 6 layers, 384 wide, bf16; beside transformers padded
               to the longest of a batch, in random order and in batches of similar length
    inference  the same model's answers, beside transformers sorted by length
    generate   GPT-2 124M, greedy, one text and eight; beside transformers' `generate`
    parallel   GPT-2 124M on all GPUs by torchrun, ddp and fsdp: speed, memory of a GPU, and the
               seconds that a checkpoint holds up training

Memory is the most that a GPU held (of a dry run: the process).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PRETUNE_CACHE", "off")

import torch

sys.path.insert(0, str(Path(__file__).parent))
from clock import Clock, prepared
from gpt import PlainGpt, Shape
from machine import machine, shown

OURS = "pretune"
RESULTS = Path(__file__).parent / "results"
WARM_UP = 4


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    device: str
    gpt: Shape
    small: Shape
    vocabulary: int  # of the large GPT
    steps: int  # updates timed
    pairs: int  # examples of the classifier
    layers: int  # of the classifier
    width: int
    batch: int  # examples of an update
    new_tokens: int


FULL = Sizes(
    device="cuda",
    gpt=Shape(12, 12, 768, 1024, 16, 0.0),
    small=Shape(4, 4, 128, 64, 12, 0.0),
    vocabulary=50304,
    steps=30,
    pairs=3668,
    layers=6,
    width=384,
    batch=32,
    new_tokens=128,
)
DRY = Sizes(
    device="cpu",
    gpt=Shape(1, 2, 16, 16, 2, 0.0),
    small=Shape(1, 2, 16, 8, 2, 0.0),
    vocabulary=96,
    steps=2,
    pairs=24,
    layers=1,
    width=16,
    batch=4,
    new_tokens=4,
)

#: One line of the table.
Row = dict[str, Any]


def row(what: str, engine: str, value: float, unit: str, peak: float | None = None) -> Row:
    return {"what": what, "engine": engine, "value": value, "unit": unit, "peak_mib": peak}


def words(seed: int, count: int) -> list[str]:
    """Words of two to nine letters, drawn from 3,000."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    known = ["".join(chance.choices(letters[:20], k=chance.randint(2, 9))) for _ in range(3000)]
    return chance.choices(known, k=count)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def fresh_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_of(device: str) -> float:
    from pretune.training.run_result import peak_memory_mb

    return peak_memory_mb(torch.device(device))


def half(device: str) -> Any:
    """bf16 autocast on a GPU, as everybody trains; nothing on a CPU."""
    on = device == "cuda"
    return torch.autocast("cuda", dtype=torch.bfloat16) if on else nullcontext()


def timed(job: Callable[[], object], rounds: int, device: str) -> float:
    """Seconds of the fastest of some rounds, after one that does not count."""
    best = float("inf")
    for number in range(rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        job()
        synchronize(device)
        if number:
            best = min(best, time.perf_counter() - start)
    return best


# Kernels


def kernels(sizes: Sizes) -> Iterator[Row]:
    """FlashAttention's variants: 1 where the first use gave the equation's numbers, else 0."""
    from pretune.models import flash

    device = torch.device("cuda:0" if sizes.device == "cuda" else "cpu")
    for dtype in (torch.bfloat16, torch.float16):
        for size in (32, 64, 128, 256) if sizes.device == "cuda" else (32,):
            for causal in (False, True):
                for windowed in (False, True):
                    for dropped in (False, True):
                        kind = {"causal": causal, "windowed": windowed, "dropped": dropped}
                        good = flash.works(device, dtype, size, **kind)
                        on = ", ".join(name for name, there in kind.items() if there) or "plain"
                        name = str(dtype).removeprefix("torch.")
                        yield row(f"kernel {name}, heads of {size}: {on}", OURS, float(good), "")


# Training a GPT


def text_files(folder: Path, shape: Shape) -> None:
    """A text that is long enough, and the tokenizer of its characters."""
    from pretune.tokenizers.train import save_trained, train_tokenizer

    tokens = shape.batch * shape.block * 12
    text = " ".join(words(0, max(tokens // 5, 200)))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    (folder / "tokenizer").mkdir(exist_ok=True)
    save_trained(train_tokenizer([text], "char"), folder / "tokenizer")


def gpt_recipe(folder: Path, shape: Shape, sizes: Sizes, steps: int, **train: Any) -> Any:
    from pretune.recipe.recipe import Recipe

    large = shape is sizes.gpt
    return Recipe.of(
        {
            "task": {"name": "causal_lm", "max_length": shape.block},
            "model": {
                "from": "gpt2-small",
                "tokenizer": str(folder / "tokenizer"),
                "config": {
                    "n_layer": shape.layers,
                    "n_head": shape.heads,
                    "n_embd": shape.width,
                    "n_positions": shape.block,
                },
                "vocab_multiple": sizes.vocabulary if large else 64,
                "dropout": shape.dropout,
                "attention_dropout": shape.dropout,
            },
            "data": {"train": str(folder / "text.txt"), "validation": None, "max_chars": 10**8},
            "train": {
                "batch_size": shape.batch,
                "max_steps": steps,
                "learning_rate": 6e-4,
                "weight_decay": 0.1,
                "beta2": 0.95,
                "device": sizes.device,
                "workers": 2,
                **train,
            },
            "output": str(folder / "run"),
        },
        "bench",
    )


def train_ours(recipe: Any, sizes: Sizes, units: Callable[[Any], float]) -> tuple[float, float]:
    """Units a second of our trainer after the warm-up, and the peak of memory."""
    from pretune.training.loop import Trainer
    from pretune.training.modes import set_modes

    fresh_peak(sizes.device)
    task, bundle, features = prepared(recipe)
    device = torch.device(sizes.device)
    set_modes(bundle.model.to(device), recipe.train, device)
    clock = Clock()
    trainer = Trainer(
        *(task, bundle.model, features),
        options=recipe.train,
        device=device,
        should_stop=clock.tick,
    )
    trainer.fit()
    return clock.rate(sizes.steps, units(features)), peak_of(sizes.device)


def train_plain(shape: Shape, sizes: Sizes, *, compiled: bool) -> tuple[float, float]:
    """The same for a plain loop: tokens a second, and the peak of memory."""
    fresh_peak(sizes.device)
    vocabulary = sizes.vocabulary if shape is sizes.gpt else 64
    torch.manual_seed(0)
    model = PlainGpt(shape, vocabulary).to(sizes.device).train()
    step: Any = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    data = torch.randint(60, (shape.batch * shape.block * 4,), device=sizes.device)
    clock = Clock()
    for _ in range(WARM_UP + sizes.steps):
        starts = torch.randint(len(data) - shape.block - 1, (shape.batch,)).tolist()
        inputs = torch.stack([data[i : i + shape.block] for i in starts])
        targets = torch.stack([data[i + 1 : i + 1 + shape.block] for i in starts])
        optimizer.zero_grad(set_to_none=True)
        with half(sizes.device):
            loss = step(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # as ours: each update's loss is looked at
        clock.tick()
    return clock.rate(sizes.steps, shape.tokens), peak_of(sizes.device)


def train_gpt(sizes: Sizes, shape: Shape, what: str, *, compiled: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text_files(folder, shape)

        def tokens(features: Any) -> float:
            return shape.batch * float(features.lengths.mean())

        for compiles in (False, True) if compiled else (False,):
            also = " + compile" if compiles else ""
            recipe = gpt_recipe(folder, shape, sizes, WARM_UP + sizes.steps, compile=compiles)
            rate, peak = train_ours(recipe, sizes, tokens)
            yield row(what, OURS + also, rate, "tokens/s", peak)
            rate, peak = train_plain(shape, sizes, compiled=compiles)
            yield row(what, "plain PyTorch" + also, rate, "tokens/s", peak)


def gpt(sizes: Sizes) -> Iterator[Row]:
    """GPT-2 124M; compiled where there is a GPU."""
    large = sizes.gpt
    what = f"GPT-2, {large.layers} layers, {large.width} wide, {large.tokens:,} tokens an update"
    yield from train_gpt(sizes, large, what, compiled=sizes.device == "cuda")


def gpt_small(sizes: Sizes) -> Iterator[Row]:
    """A GPT whose products are too small to fill a GPU."""
    small = sizes.small
    what = f"GPT, {small.layers} layers, {small.width} wide, {small.tokens:,} tokens an update"
    yield from train_gpt(sizes, small, what, compiled=False)


# A classifier


def pairs_of(count: int) -> list[dict[str, Any]]:
    """Pairs of sentences with the lengths of MRPC's: 22 words, give or take 5."""
    chance, drawn = random.Random(1), iter(words(1, count * 80))  # noqa: S311
    lengths = [max(7, round(chance.gauss(22, 5))) for _ in range(2 * count)]
    sentences = [" ".join(next(drawn) for _ in range(length)) for length in lengths]
    return [
        {"sentence1": first, "sentence2": second, "label": str(chance.randint(0, 1))}
        for first, second in zip(sentences[::2], sentences[1::2], strict=True)
    ]


def classifier_recipe(folder: Path, sizes: Sizes) -> Any:
    from pretune.recipe.recipe import Recipe

    lines = ["sentence1\tsentence2\tlabel"]
    lines += ["\t".join(pair.values()) for pair in pairs_of(sizes.pairs)]
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Recipe.load(
        "mrpc",
        {
            "data.train": str(folder / "pairs.tsv"),
            "data.validation": None,
            "model.from": "bert-mini",
            "model.config": {
                "num_hidden_layers": sizes.layers,
                "hidden_size": sizes.width,
                "num_attention_heads": max(2, sizes.width // 32),
                "intermediate_size": 4 * sizes.width,
            },
            "model.train_tokenizer": {"kind": "wordpiece", "vocab_size": 4000},
            "train.max_steps": WARM_UP + sizes.steps,
            "train.batch_size": sizes.batch,
            "train.device": sizes.device,
            "train.workers": 2,
            "output": str(folder / "run"),
        },
    )


def peer_model(folder: Path, recipe: Any, sizes: Sizes) -> tuple[Any, list[list[int]]]:
    """A model of transformers of the same shape, and the pairs in ids, as ours has them."""
    import transformers

    _, bundle, features = prepared(recipe)
    config = transformers.BertConfig(
        vocab_size=bundle.tokenizer.vocab_size,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=max(2, sizes.width // 32),
        intermediate_size=4 * sizes.width,
        num_labels=2,
    )
    model = transformers.BertForSequenceClassification(config).to(sizes.device)
    rows = [
        features.tokens[start : start + length].tolist()
        for start, length in zip(features.starts, features.lengths, strict=False)
    ]
    return model, rows


def padded(rows: list[list[int]], device: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def train_peer(model: Any, rows: list[list[int]], sizes: Sizes, *, similar: bool) -> float:
    """Examples a second of transformers' model in a plain loop."""
    chance = random.Random(2)  # noqa: S311
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches = [order[i : i + sizes.batch] for i in range(0, len(order), sizes.batch)]
    full = [batch for batch in batches if len(batch) == sizes.batch]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    model.train()
    clock = Clock()
    for _ in range(WARM_UP + sizes.steps):
        every = range(len(rows))
        which = chance.choice(full) if similar else chance.sample(every, sizes.batch)
        optimizer.zero_grad(set_to_none=True)
        labels = torch.tensor([i % 2 for i in which], device=sizes.device)
        with half(sizes.device):
            loss = model(**padded([rows[i] for i in which], sizes.device), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        clock.tick()
    return clock.rate(sizes.steps, sizes.batch)


def finetune(sizes: Sizes) -> Iterator[Row]:
    """Fine-tuning of a small encoder on pairs of sentences."""
    what = f"fine-tuning, {sizes.layers} layers, {sizes.width} wide, batches of {sizes.batch}"
    with tempfile.TemporaryDirectory() as name:
        recipe = classifier_recipe(Path(name), sizes)
        rate, peak = train_ours(recipe, sizes, lambda features: sizes.batch)
        yield row(what, OURS, rate, "examples/s", peak)
        for similar, how in ((False, "dynamic padding"), (True, "batches of similar length")):
            fresh_peak(sizes.device)
            model, rows = peer_model(Path(name), recipe, sizes)
            rate = train_peer(model, rows, sizes, similar=similar)
            yield row(what, f"transformers, {how}", rate, "examples/s", peak_of(sizes.device))


def inference(sizes: Sizes) -> Iterator[Row]:
    """Answers of the same encoder: all pairs, and one."""
    from pretune.inference.predict import Predictor

    with tempfile.TemporaryDirectory() as name:
        recipe = classifier_recipe(Path(name), sizes)
        _, bundle, _ = prepared(recipe)
        fresh_peak(sizes.device)
        precision = "bf16" if sizes.device == "cuda" else "float32"
        predictor = Predictor(bundle, device=sizes.device, precision=precision)
        rows = [(pair["sentence1"], pair["sentence2"]) for pair in pairs_of(sizes.pairs)]
        records = predictor.records(rows)
        taken = timed(lambda: predictor.predict(records), 3, sizes.device)
        peak = peak_of(sizes.device)
        yield row("answers", OURS, len(rows) / taken, "texts/s", peak)
        one = predictor.records(rows[:1])
        taken = timed(lambda: predictor.predict(one), 20, sizes.device)
        yield row("one answer", OURS, taken * 1000, "ms")
        fresh_peak(sizes.device)
        model, ids = peer_model(Path(name), recipe, sizes)
        model.eval()

        def answer(which: list[list[int]]) -> None:
            order = sorted(range(len(which)), key=lambda i: -len(which[i]))
            for start in range(0, len(order), 128):
                batch = padded([which[i] for i in order[start : start + 128]], sizes.device)
                with torch.inference_mode(), half(sizes.device):
                    model(**batch).logits.float().softmax(-1).cpu()

        taken = timed(lambda: answer(ids), 3, sizes.device)
        engine = "transformers, sorted, ids given"
        yield row("answers", engine, len(ids) / taken, "texts/s", peak_of(sizes.device))
        taken = timed(lambda: answer(ids[:1]), 20, sizes.device)
        yield row("one answer", engine, taken * 1000, "ms")


# Writing


def generate(sizes: Sizes) -> Iterator[Row]:
    """Greedy text of GPT-2's shape, for one text and for eight."""
    import transformers
    from generate import build, ours, peer, prompts_of

    from pretune.decoding.decoding import Decoding
    from pretune.inference.generate import TextGenerator

    transformers.logging.set_verbosity_error()
    shape, block = sizes.gpt, max(sizes.gpt.block, 64)
    on_cpu, theirs = build(
        {
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_embd": shape.width,
            "n_positions": block,
            "vocab_size": max(sizes.vocabulary, 1001),
        }
    )
    fresh_peak(sizes.device)
    writer = TextGenerator(on_cpu.model, on_cpu.tokenizer, device=sizes.device, batch_size=64)
    theirs = theirs.to(sizes.device)
    decoding = Decoding(temperature=0, stop_tokens=(), max_new_tokens=sizes.new_tokens)
    for batch in (1, 8):
        prompts = prompts_of(batch, 32, ragged=False)
        what, count = f"greedy, {batch} at a time", batch * sizes.new_tokens
        taken = timed(partial(ours, writer, prompts, decoding), 2, sizes.device)
        yield row(what, OURS, count / taken, "tokens/s", peak_of(sizes.device))
        given = theirs, prompts, sizes.new_tokens, {"do_sample": False}, sizes.device
        with half(sizes.device):  # as ours does by itself
            taken = timed(partial(peer, *given), 2, sizes.device)
        yield row(what, "transformers", count / taken, "tokens/s", peak_of(sizes.device))


# Several GPUs


def parallel(sizes: Sizes) -> Iterator[Row]:
    """The GPT on all GPUs, by torchrun; a dry run has two processes."""
    count = torch.cuda.device_count() if sizes.device == "cuda" else 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text_files(folder, sizes.gpt)
        for way in ("ddp", "fsdp"):
            output = folder / way
            steps = WARM_UP + 2 * sizes.steps
            own = gpt_recipe(
                *(folder, sizes.gpt, sizes, steps),
                parallel=way,
                log_every=1,
                save_every=WARM_UP + sizes.steps,
                background_save=True,
            ).changed({"output": str(output), "train.batch_size": sizes.gpt.batch * count})
            path = folder / f"{way}.yaml"
            path.write_text(own.to_yaml(), encoding="utf-8")
            command = [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)),
                *("--master-port", str(_free_port())),
                *("-m", "pretune", "train", str(path), "-q"),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            result = json.loads((output / "result.json").read_text(encoding="utf-8"))
            logs = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            rates = [json.loads(line).get("train/tokens_per_second") for line in logs]
            known = sorted(rate for rate in rates[WARM_UP:] if rate is not None)
            what = f"GPT-2 on {count} {'GPUs' if sizes.device == 'cuda' else 'processes'}"
            rate, peak = known[len(known) // 2], result["peak_memory_mb"]
            yield row(what, f"{OURS}, {way}", rate, "tokens/s", peak)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# All of it


@dataclass(frozen=True)
class Part:
    """What is measured, and the seconds that it may take."""

    measure: Callable[[Sizes], Iterator[Row]]
    limit: int


#: Together below 600 seconds. The first ones are what one would miss the most.
PARTS = {
    "kernels": Part(kernels, 60),
    "gpt": Part(gpt, 180),
    "finetune": Part(finetune, 70),
    "inference": Part(inference, 50),
    "generate": Part(generate, 70),
    "parallel": Part(parallel, 120),
    "gpt-small": Part(gpt_small, 40),
}


def about(device: str) -> dict[str, Any]:
    """The machine and its GPUs."""
    known = machine()
    if device == "cuda":
        properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        known["gpus"] = [f"{p.name}, {p.total_memory / 2**30:.0f} GiB" for p in properties]
        known["cuda"] = torch.version.cuda
    return known


def in_child(name: str, options: argparse.Namespace) -> tuple[list[Row], str | None]:
    """Measure a part in a process of its own, for at most its limit of seconds."""
    dry = ["--dry"] if options.dry else []
    command = [sys.executable, __file__, "--part", name, *dry]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        child = subprocess.Popen(command, stdout=printed, stderr=subprocess.PIPE, text=True)
        try:
            _, told = child.communicate(timeout=PARTS[name].limit)
            last = told.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
            why = None if child.returncode == 0 else last[0]
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            why = f"cut short after {PARTS[name].limit} seconds"
        printed.seek(0)
        lines = [json.loads(line) for line in printed if line.startswith("{")]
    rows = [line for line in lines if "value" in line]
    missing = [line["missing"] for line in lines if "missing" in line]
    return rows, why or (missing[0] if missing else None)


def markdown(rows: list[Row], missing: dict[str, str], known: dict[str, Any]) -> str:
    """The table."""
    lines = [shown(known), "", ", ".join(known.get("gpus", ["no GPU: a dry run"])), ""]
    lines += ["| | engine | | | memory, MiB | pretune is |", "|---|---|---:|---|---:|---:|"]
    best: dict[str, float] = {}
    for each in rows:
        best.setdefault(each["what"], each["value"])  # ours is the first
        ratio = each["value"] / best[each["what"]] if best[each["what"]] else 0.0
        better = ratio if each["unit"] == "ms" else (1 / ratio if ratio else 0.0)
        peak = "" if each["peak_mib"] is None else f"{each['peak_mib']:,.0f}"
        told = "" if each["engine"] == OURS or not each["unit"] else f"{better:.2f}x"
        value = f"{each['value']:,.1f}"
        cells = (each["what"], each["engine"], value, each["unit"], peak, told)
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\nNot measured: {name} ({why})" for name, why in missing.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--part", choices=PARTS, help="measure one here, and print its rows")
    options = parser.parse_args()
    sizes = DRY if options.dry else FULL
    if options.part:
        torch.manual_seed(0)
        try:
            for each in PARTS[options.part].measure(sizes):
                print(json.dumps(each), flush=True)
        except ImportError as error:
            print(json.dumps({"missing": f"{error.name} is not installed"}), flush=True)
        return
    if not options.dry and not torch.cuda.is_available():
        sys.exit("there is no NVIDIA GPU here; --dry runs tiny sizes on the CPU")
    rows: list[Row] = []
    missing: dict[str, str] = {}
    known = about(sizes.device)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        found, why = in_child(name, options)
        rows += [{"part": name, **each} for each in found]
        if why is not None:
            missing[name] = why
        # After each part: whoever loses the machine keeps what there is.
        text = {"machine": known, "rows": rows, "missing": missing}
        (options.out / "gpu.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
        (options.out / "gpu.md").write_text(markdown(rows, missing, known), encoding="utf-8")
        print(f"{name}: {len(found)} figures" + (f" ({why})" if why else ""), flush=True)
    print("\n" + markdown(rows, missing, known))


if __name__ == "__main__":
    main()
