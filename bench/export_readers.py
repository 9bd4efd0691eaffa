"""Do other programs open what `pretune export --to onnx` writes, and compute the same?

    python bench/export_readers.py [--optimum PYTHON] [--node FOLDER]

OpenVINO, where it is installed, reads the graphs of small random models of every family with every
head (tests/export/models.py), in float32 and in 8 bits, on the texts that an export is checked by.

Two other programs open whole folders: a BERT that tells classes, a GPT-2, and a Marian, of random
weights. They cut texts by the tokenizer that lies there, give logits, and write on with the keys
and values of earlier tokens.

    Optimum          run by PYTHON, where `pip install 'optimum-onnx[onnxruntime]'` was run; it asks
                     for an older transformers
    transformers.js  run by node, in the FOLDER where `npm install @huggingface/transformers` was

Printed are their versions, the largest differences from the model, and whether tokens are the same:
those of the texts, and those that are written, each of which must be the most probable one.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

#: What the models read, and how many tokens are written on.
TEXTS = ["A dog runs across the meadow.", "Two men are cooking in the big kitchen of a house."]
WRITTEN = 12


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimum", metavar="PYTHON", help="an interpreter that has Optimum")
    parser.add_argument("--node", metavar="FOLDER", help="where npm installed transformers.js")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(by_optimum(options.inside)))
        return
    if importlib.util.find_spec("openvino"):
        openvino()
    if not (options.optimum or options.node):
        return
    with tempfile.TemporaryDirectory() as place:
        bundles = export(Path(place))
        if options.optimum:
            command = [options.optimum, str(Path(__file__).resolve()), "--inside", place]
            report(answer_of(command, place), bundles)
        if options.node:
            # Of a Marian's SentencePiece files it reads none: it is given our tokens.
            ids = json.dumps(bundles["marian"].tokenizer.encode(TEXTS[:1])[0].ids)
            command = ["node", "--input-type=module", "-e", IN_JAVASCRIPT, place, ids, *TEXTS]
            report(answer_of(command, options.node), bundles)


# OpenVINO


def openvino() -> None:
    """Print how far OpenVINO is from the models."""
    import onnx

    from pretune.export.onnx_check import compare
    from pretune.export.onnx_graph import GraphWriter
    from pretune.export.onnx_models import write_graphs
    from tests.export.models import HEADS, random_model

    print(f"openvino {importlib.metadata.version('openvino')}\n")
    print("| family | head | float32 | int8 |\n|---|---|---|---|")
    for family, head in HEADS:
        cells = []
        for int8 in (False, True):
            exported, files = random_model(family, head), {}
            with tempfile.TemporaryDirectory() as place:
                for name, graph in write_graphs(exported, partial(GraphWriter, int8=int8)).items():
                    path = Path(place) / f"{name}.onnx"
                    onnx.save(graph.model({}, "0"), path)
                    files[name] = opened(path)
                cells.append(f"{compare(exported, files).largest:.1e}")
        print(f"| `{family}` | `{head}` | {' | '.join(cells)} |", flush=True)


def opened(path: Path) -> Any:
    """Open a graph by OpenVINO; what comes is used as an `OnnxFile`."""
    from pretune.export.onnx_runtime import OnnxFile

    own = importlib.import_module("openvino")
    # By itself it computes in bf16 where the processor can.
    model = own.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    class OpenVinoFile(OnnxFile):
        """Its inputs and outputs are known by onnxruntime; OpenVINO runs it."""

        def run(self, inputs: Mapping[str, Any], *names: str) -> dict[str, Any]:
            known = {name: array for name, array in inputs.items() if name in self.inputs}
            given = model(known, share_outputs=False)
            every = {name: given[place] for place, name in enumerate(self.outputs)}
            return {name: every[name] for name in names or self.outputs}

    return OpenVinoFile(path)


# Whole folders


def export(folder: Path) -> dict[str, Any]:
    """Export three models into a folder, by name; returns the models."""
    import torch
    import transformers

    from pretune.bundle.bundle import load
    from pretune.export.onnx_files import export_onnx
    from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
    from pretune.tasks.classification.classify import Classify, ClassifyOptions
    from pretune.tokenizers.train import train_tokenizer
    from tests.tasks import opus

    sources = folder / "sources"
    texts = [*TEXTS, *opus.SOURCES, *opus.TARGETS]
    torch.manual_seed(0)
    width = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    sizes: dict[str, Any] = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id"))
    pieces, pairs = train_tokenizer(texts, "wordpiece", 200), train_tokenizer(texts, "bpe", 300)
    kinds: dict[str, tuple[Any, Any, Any]] = {
        "bert": (
            transformers.BertModel(
                transformers.BertConfig(vocab_size=pieces.vocab_size, intermediate_size=64, **width)
            ),
            pieces,
            Classify(ClassifyOptions(max_length=64), ["bad", "fair", "good"]),
        ),
        "gpt2": (
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=pairs.vocab_size, **sizes)
            ),
            pairs,
            CausalLm(CausalLmOptions(max_length=64)),
        ),
    }
    bundles = {}
    for name, (model, tokenizer, task) in kinds.items():
        model.save_pretrained(sources / name)
        tokenizer.save(sources / name)
        bundles[name] = load(sources / name, task=task)
    (sources / "marian").mkdir()
    opus.write_tokenizer(sources / "marian")
    plain: dict[str, Any] = {
        "num_beams": 1,
        "renormalize_logits": False,
        "forced_eos_token_id": None,
    }
    opus.write_model(sources / "marian", **plain)
    bundles["marian"] = load(sources / "marian")
    for name, bundle in bundles.items():
        with torch.no_grad():
            # Weights as they begin are so small that all answers are alike.
            for parameter in bundle.model.parameters() if name != "marian" else ():
                parameter.normal_(std=0.3)
        export_onnx(bundle, folder / name)
    return bundles


def answer_of(command: list[str], place: str) -> dict[str, Any]:
    """What a program prints as JSON in its last line."""
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def by_optimum(folder: Path) -> dict[str, Any]:
    """What Optimum gives; run by an interpreter that has it, and need not have pretune."""
    import torch
    import transformers

    runtime: Any = importlib.import_module("optimum.onnxruntime")
    packages = ("optimum", "optimum-onnx", "transformers", "onnxruntime")
    answer: dict[str, Any] = {
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    }
    kinds = {
        "bert": runtime.ORTModelForSequenceClassification,
        "gpt2": runtime.ORTModelForCausalLM,
        "marian": runtime.ORTModelForSeq2SeqLM,
    }
    greedy = {"do_sample": False, "num_beams": 1, "max_new_tokens": WRITTEN}
    for name, kind in kinds.items():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        model = kind.from_pretrained(folder / name)
        texts = TEXTS if name == "bert" else TEXTS[:1]
        read = tokenizer(texts, padding=len(texts) > 1, return_tensors="pt")
        own: dict[str, Any] = {
            "ids": [
                ids[mask > 0].tolist()
                for ids, mask in zip(read["input_ids"], read["attention_mask"], strict=True)
            ]
        }
        if name != "bert":
            written = model.generate(**read, **greedy)
            more = {"decoder_input_ids": written} if name == "marian" else {}
            alone = {"input_ids": written, "attention_mask": torch.ones_like(written)}
            read = {**read, **more} if more else alone
            own["written"] = written[0].tolist()
        with torch.inference_mode():
            own["logits"] = model(**read).logits.tolist()
        answer[name] = own
    return answer


#: What transformers.js gives: the arguments are the folder, a Marian's tokens, and the texts.
IN_JAVASCRIPT = """
import * as js from '@huggingface/transformers';
import { readFileSync } from 'node:fs';
const [folder, source, ...texts] = process.argv.slice(1);
js.env.allowRemoteModels = false;
js.env.localModelPath = folder + '/';
const numbers = (tensor) => tensor.tolist().map((row) => row.map((cell) =>
  typeof cell === 'bigint' ? Number(cell) : cell));
const tensor = (ids) => new js.Tensor('int64', BigInt64Array.from(ids, BigInt), [1, ids.length]);
const kinds = {
  bert: js.AutoModelForSequenceClassification,
  gpt2: js.AutoModelForCausalLM,
  marian: js.AutoModelForSeq2SeqLM,
};
const version = JSON.parse(readFileSync(
  'node_modules/@huggingface/transformers/package.json', 'utf8')).version;
const answer = { versions: `transformers.js ${version}, node ${process.version}` };
for (const [name, kind] of Object.entries(kinds)) {
  const model = await kind.from_pretrained(name, { dtype: 'fp32' });
  let read;
  if (name === 'marian') {
    const ids = JSON.parse(source);
    read = { input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)) };
  } else {
    const tokenizer = await js.AutoTokenizer.from_pretrained(name);
    read = tokenizer(name === 'bert' ? texts : texts.slice(0, 1), { padding: name === 'bert' });
  }
  const masks = numbers(read.attention_mask);
  const own = { ids: numbers(read.input_ids).map((row, i) => row.filter((_, j) => masks[i][j])) };
  if (name === 'bert') {
    own.logits = numbers((await model(read)).logits);
  } else {
    const options = { max_new_tokens: WRITTEN, do_sample: false, num_beams: 1 };
    own.written = numbers(await model.generate({ ...read, ...options }))[0];
  }
  answer[name] = own;
}
console.log(JSON.stringify(answer));
""".replace("WRITTEN", str(WRITTEN))


def report(answer: Mapping[str, Any], bundles: Mapping[str, Any]) -> None:
    """Print how a program's answers compare with the models'."""
    print(f"\n{answer['versions']}\n")
    print("| model | tokens of the texts | logits | written |\n|---|---|---|---|")
    for name, own in answer.items():
        if name == "versions":
            continue
        bundle = bundles[name]
        ids = [each.ids for each in bundle.tokenizer.encode(TEXTS[: len(own["ids"])])]
        cells = ["the same" if own["ids"] == ids else f"{own['ids']}, not {ids}"]
        ours = logits_of(bundle, own["ids"], own.get("written"))
        far = difference(own["logits"], ours) if "logits" in own else None
        cells.append("" if far is None else f"{far:.1e}")
        cells.append(most_probable(bundle, own, ours) if "written" in own else "")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def logits_of(bundle: Any, ids: list[list[int]], written: list[int] | None) -> Any:
    """Our logits: of texts, of a text that was written on, or of the targets of a pair."""
    import torch

    from pretune.data.batch import PackedBatch

    if written is None:
        batch = PackedBatch.of(ids)
    elif bundle.backbone.reads_pairs:
        both = PackedBatch.of([ids[0], written])
        batch = PackedBatch(both.tokens, both.layout, both.positions, choices=(2,))
    else:
        batch = PackedBatch.of([written])
    with torch.inference_mode():
        return bundle.model.eval()(batch)


def difference(theirs: Any, ours: Any) -> float:
    """The largest difference of two numbers."""
    import numpy as np

    other = np.array(theirs)
    other = other[0] if other.ndim == 3 else other
    return float(np.abs(other - ours.numpy()).max())


def most_probable(bundle: Any, own: Mapping[str, Any], ours: Any) -> str:
    """Whether each token that was written is the one that the model finds most probable."""
    written, begin = own["written"], len(own["ids"][0])
    if bundle.backbone.reads_pairs:
        ours = ours.clone()  # what inference gave is not to be changed
        ours[:, list(bundle.task.decoding.never)] = -float("inf")
        begin = 1
    right = ours.argmax(-1).tolist()[begin - 1 : -1]
    pairs = list(zip(written[begin:], right, strict=True))
    other = [f"{theirs} for {best}" for theirs, best in pairs if theirs != best]
    return "; ".join([f"{len(right) - len(other)} of {len(right)} tokens", *other])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
