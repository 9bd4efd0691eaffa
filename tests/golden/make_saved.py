"""Make the fixtures below saved/: `python tests/golden/make_saved.py [FOLDER]`.

They were made by the version of pretune that test_saved.py names, and are there to show that later
versions still open what that one wrote. So run this only to add a format, never to make a failing
test pass.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from make_golden import command, plain  # first: it sets the environment

# isort: split
import argparse
import json
import os
import shutil
from typing import Any

import cases

#: One for each kind of task and of model.
SAVED = (
    *("classify", "pairs", "multilabel", "regress", "choose", "tag", "tag-crf", "answer-none"),
    *("mask", "mask-nsp", "causal", "nnlm", "lstm-carried", "chat", "instruct", "translate"),
    *("gpt-stored", "lora"),
)
#: Replies that are drawn would hang on the last digits of a CPU.
GREEDY = {"chat": ["task.temperature=0"], "instruct": ["task.temperature=0"]}
#: What is not needed to open a run; the first two are needed to resume one.
LEFT_OUT = ("trainer.safetensors", "trainer.json", ".lock", "events")


def answers(name: str) -> dict[str, Any]:
    """What a saved model answers, and how good it is, by the public functions."""
    import pretune

    run = cases.RUNS[name]
    model = pretune.load(f"runs/{name}")
    found: dict[str, Any] = {"metrics": plain(pretune.evaluate(model, run.data).metrics)}
    asked = list(run.asked or run.ask)
    if asked:
        found["predictions"] = [plain(one.to_dict()) for one in pretune.predict(model, asked)]
    return found


def trained_on_corpus(output: str) -> dict[str, Any]:
    """The figures of a short training on the saved corpus."""
    import pretune

    words = cases.training("gpt-stored", output)
    result = pretune.train(words[1], words[2:], quiet=True)
    return {"metrics": plain(result.metrics), "tokens": result.tokens, "steps": result.steps}


def make(folder: Path) -> None:
    """Write everything into a folder that is not there yet."""
    import torch

    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    os.chdir(folder)
    cases.write_data(Path("data"))
    Path("language.yaml").write_text(cases.LANGUAGE_FILE, encoding="utf-8")
    for name, argv in cases.TOKENIZERS.items():
        command("tokenizer", *argv, "-o", name)
    command("prepare", *cases.CORPORA["corpus-bpe"], "--workers", "1", "--output", "corpus-bpe")
    for name in SAVED:
        command(*cases.training(name), *GREEDY.get(name, ()))
    half = [*cases.training("classify", "runs/unfinished"), "train.save_every=3"]
    command(*half, stop_at="  validation: ")
    shutil.copytree("runs/unfinished", "whole", symlinks=True)
    command("train", "--resume", "whole")
    shutil.copy("whole/last/model.safetensors", "resumed.safetensors")
    stored = {name: answers(name) for name in SAVED}
    stored["corpus"] = trained_on_corpus("whole-corpus")
    for left in ("whole", "whole-corpus"):
        shutil.rmtree(left)
    Path("stored.json").write_text(json.dumps(stored, ensure_ascii=False, indent=1) + "\n")
    for path in sorted(Path("runs").rglob("*")):
        left_out = path.name in LEFT_OUT and (
            "unfinished" not in path.parts or path.name in LEFT_OUT[2:]
        )
        if left_out and not path.is_symlink():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "saved")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
