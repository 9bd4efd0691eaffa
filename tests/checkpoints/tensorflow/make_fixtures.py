"""Writes `fixtures/tensorflow`, with a real TensorFlow. Tests only read it.

    pip install tensorflow-cpu tf_keras scipy safetensors     # 2.21.0, 2.21.0
    pip install --no-deps tf-models-official gin-config       # 2.20.0, the Model Garden
    python tests/checkpoints/tensorflow/make_fixtures.py

Each folder is a release as Google ships it, with `expected.safetensors` beside it: the same values
under the names of the Hugging Face layout. Where the Model Garden's own classes wrote it,
`outputs.safetensors` has what they compute.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # Keras 2, which the Model Garden is written for

import numpy as np
import tensorflow as tf
from official.nlp.modeling import models, networks
from safetensors.numpy import save_file

FOLDER = Path(__file__).parents[1] / "fixtures" / "tensorflow"
HIDDEN, LAYERS, HEADS, INNER, VOCABULARY, POSITIONS = 8, 2, 2, 16, 30, 12
IDS = [[2, 5, 9, 13, 3], [2, 3], [2, *range(8, 17), 3]]
CONFIG = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "type_vocab_size": 2,
    "vocab_size": VOCABULARY,
}
WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "a", "A", "film", "Film"),
    *("good", "bad", "##s", "##ing", ".", ",", "!", "?"),
)


def backbone() -> dict[str, np.ndarray]:
    """Random values under Hugging Face names, orientation as there."""
    generator = np.random.default_rng(7)

    def values(*shape: int) -> np.ndarray:
        return generator.normal(size=shape, scale=0.3).astype(np.float32)

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": values(outputs, inputs), f"{name}.bias": values(outputs)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": values(HIDDEN), f"{name}.bias": values(HIDDEN)}

    found = {
        "bert.embeddings.word_embeddings.weight": values(VOCABULARY, HIDDEN),
        "bert.embeddings.position_embeddings.weight": values(POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": values(2, HIDDEN),
        **norm("bert.embeddings.LayerNorm"),
        **dense("bert.pooler.dense", HIDDEN, HIDDEN),
    }
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            found |= dense(f"{layer}.attention.{name}", HIDDEN, HIDDEN)
        found |= norm(f"{layer}.attention.output.LayerNorm")
        found |= dense(f"{layer}.intermediate.dense", HIDDEN, INNER)
        found |= dense(f"{layer}.output.dense", INNER, HIDDEN)
        found |= norm(f"{layer}.output.LayerNorm")
    return found


def heads() -> dict[str, np.ndarray]:
    """Those of pre-training."""
    generator = np.random.default_rng(8)
    shapes = {
        "cls.predictions.transform.dense.weight": (HIDDEN, HIDDEN),
        "cls.predictions.transform.dense.bias": (HIDDEN,),
        "cls.predictions.transform.LayerNorm.weight": (HIDDEN,),
        "cls.predictions.transform.LayerNorm.bias": (HIDDEN,),
        "cls.predictions.bias": (VOCABULARY,),
        "cls.seq_relationship.weight": (2, HIDDEN),
        "cls.seq_relationship.bias": (2,),
    }
    return {k: generator.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def tf1_name(name: str) -> str:
    """As google-research/bert calls its variables."""
    name = name.replace(".weight", ".gamma" if "LayerNorm" in name else ".kernel")
    if "LayerNorm" in name:
        name = name.replace(".bias", ".beta")
    name = name.replace("embeddings.kernel", "embeddings")
    name = name.replace("predictions.bias", "predictions.output_bias")
    name = name.replace("relationship.kernel", "relationship.output_weights")
    name = name.replace("relationship.bias", "relationship.output_bias")
    return re.sub(r"layer\.(\d)", r"layer_\1", name).replace(".", "/")


def tf1_value(name: str, value: np.ndarray) -> np.ndarray:
    return value.T if tf1_name(name).endswith("/kernel") else value


def release(name: str, expected: dict[str, np.ndarray]) -> Path:
    """A folder with everything but the checkpoint; the prefix to save that under."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "bert_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    words = [*WORDS, *(f"[unused{i}]" for i in range(VOCABULARY - len(WORDS)))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    save_file(
        {k: np.ascontiguousarray(v) for k, v in expected.items()}, folder / "expected.safetensors"
    )
    return folder / "bert_model.ckpt"


def save_tf1(prefix: Path, values: dict[str, np.ndarray], *, slots: bool, devices: int = 1) -> None:
    """With `tf.train.Saver`; on several devices, a data file for each."""
    with tf.Graph().as_default():
        for at, (name, value) in enumerate(values.items()):
            with tf.device(f"/cpu:{at % devices}"):
                for slot in ("", "/adam_m", "/adam_v") if slots else ("",):
                    tf.compat.v1.get_variable(
                        tf1_name(name) + slot,
                        initializer=tf.constant(tf1_value(name, value) if not slot else value * 0),
                        use_resource=False,
                    )
        with tf.device("/cpu:0"):
            tf.compat.v1.train.create_global_step()
        saver = tf.compat.v1.train.Saver(sharded=devices > 1)
        config = tf.compat.v1.ConfigProto(device_count={"CPU": devices})
        with tf.compat.v1.Session(config=config) as session:
            session.run(tf.compat.v1.global_variables_initializer())
            saver.save(session, str(prefix), write_meta_graph=False)
    (prefix.parent / "checkpoint").unlink()  # says where it lay when it was written


def mixed(values: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """The values in four dtypes, and what they are in float32."""
    dtypes = (np.float32, np.float16, tf.bfloat16.as_numpy_dtype, np.float64)
    cast = {k: v.astype(dtypes[i % 4]) for i, (k, v) in enumerate(values.items())}
    return cast, {k: v.astype(np.float32) for k, v in cast.items()}


class Node(tf.Module):
    """An object with attributes."""


def attach(root: Node, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for name in parents:
        if not hasattr(root, name):
            setattr(root, name, Node())
        root = getattr(root, name)
    setattr(root, last, tf.Variable(value))


def tf2_paths(values: dict[str, np.ndarray], *, old: bool) -> dict[str, np.ndarray]:
    """Attributes of a Model Garden encoder; `old` calls the attention's last part as 2.2 did."""
    embeddings = ("word", "position", "token_type")
    found = {
        f"layer_with_weights-{i}/embeddings": values[f"bert.embeddings.{name}_embeddings.weight"]
        for i, name in enumerate(embeddings)
    }
    width = HIDDEN // HEADS
    output = "_attention_output_dense" if old else "_attention_layer/_output_dense"
    for i in range(LAYERS):
        ours, theirs = f"bert.encoder.layer.{i}", f"layer_with_weights-{4 + i}"
        for name in ("query", "key", "value"):
            part = f"{ours}.attention.self.{name}"
            path = f"{theirs}/_attention_layer/_{name}_dense"
            found[f"{path}/kernel"] = values[f"{part}.weight"].T.reshape(HIDDEN, HEADS, width)
            found[f"{path}/bias"] = values[f"{part}.bias"].reshape(HEADS, width)
        part = f"{ours}.attention.output.dense"
        found[f"{theirs}/{output}/kernel"] = values[f"{part}.weight"].T.reshape(
            HEADS, width, HIDDEN
        )
        found[f"{theirs}/{output}/bias"] = values[f"{part}.bias"]
        for path, part in (("_intermediate_dense", "intermediate"), ("_output_dense", "output")):
            found[f"{theirs}/{path}/kernel"] = values[f"{ours}.{part}.dense.weight"].T
            found[f"{theirs}/{path}/bias"] = values[f"{ours}.{part}.dense.bias"]
        for path, part in (
            ("_attention_layer_norm", "attention.output"),
            ("_output_layer_norm", "output"),
        ):
            found[f"{theirs}/{path}/gamma"] = values[f"{ours}.{part}.LayerNorm.weight"]
            found[f"{theirs}/{path}/beta"] = values[f"{ours}.{part}.LayerNorm.bias"]
    found["layer_with_weights-3/gamma"] = values["bert.embeddings.LayerNorm.weight"]
    found["layer_with_weights-3/beta"] = values["bert.embeddings.LayerNorm.bias"]
    found[f"layer_with_weights-{4 + LAYERS}/kernel"] = values["bert.pooler.dense.weight"].T
    found[f"layer_with_weights-{4 + LAYERS}/bias"] = values["bert.pooler.dense.bias"]
    return found


def by_attribute(paths: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Paths in a BertEncoderV2, whose layers are attributes."""
    places = {0: "_embedding_layer", 1: "_position_embedding_layer", 2: "_type_embedding_layer"}
    places |= {3: "_embedding_norm_layer", 4 + LAYERS: "_pooler_layer"}
    places |= {4 + i: f"_transformer_layers/{i}" for i in range(LAYERS)}
    return {
        re.sub(r"layer_with_weights-(\d+)", lambda m: places[int(m[1])], path): value
        for path, value in paths.items()
    }


def node(paths: dict[str, np.ndarray]) -> Node:
    root = Node()
    for path, value in paths.items():
        attach(root, path, value)
    return root


def save_object(prefix: Path, checkpoint: tf.train.Checkpoint) -> None:
    """With `tf.train.Checkpoint`: names are paths of attributes."""
    written = checkpoint.save(str(prefix))  # adds save_counter to the object and -1 to the name
    for path in prefix.parent.glob(Path(written).name + ".*"):
        path.rename(path.with_name(path.name.replace("ckpt-1.", "ckpt.")))
    (prefix.parent / "checkpoint").unlink()


def exact_gelu(x: tf.Tensor) -> tf.Tensor:
    return tf.keras.activations.gelu(x, approximate=False)


def sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_sequence_length": POSITIONS,
        "type_vocab_size": 2,
    }


def inputs_of(ids: list[int]) -> dict[str, tf.Tensor]:
    words = tf.constant([ids])
    return {
        "input_word_ids": words,
        "input_mask": tf.ones_like(words),
        "input_type_ids": tf.zeros_like(words),
        "masked_lm_positions": tf.range(len(ids))[None],
    }


def fill(objects: dict[str, tf.Module], like: dict[str, Node]) -> tf.train.Checkpoint:
    """Give the Model Garden's objects our values: each of their variables must get one."""
    path = tf.train.Checkpoint(**like).write(str(FOLDER / "temporary"))
    checkpoint = tf.train.Checkpoint(**objects)
    checkpoint.read(path).assert_existing_objects_matched()
    for left in FOLDER.glob("temporary.*"):
        left.unlink()
    return checkpoint


def save_encoder(prefix: Path, values: dict[str, np.ndarray]) -> None:
    """The Model Garden's BertEncoder, a Keras model of numbered layers."""
    encoder = networks.BertEncoder(
        intermediate_size=INNER, activation=exact_gelu, dict_outputs=True, **sizes()
    )
    checkpoint = fill({"model": encoder}, {"model": node(tf2_paths(values, old=False))})
    save_object(prefix, checkpoint)
    outputs = {}
    for i, ids in enumerate(IDS):
        inputs = inputs_of(ids)
        del inputs["masked_lm_positions"]
        found = encoder(inputs)
        outputs[f"hidden.{i}"] = found["sequence_output"][0].numpy()
        outputs[f"pooled.{i}"] = found["pooled_output"][0].numpy()
    save_file(outputs, prefix.parent / "outputs.safetensors")


def save_pretrainer(prefix: Path, values: dict[str, np.ndarray]) -> None:
    """The Model Garden's BertPretrainerV2 on a BertEncoderV2."""
    encoder = networks.BertEncoderV2(inner_dim=INNER, inner_activation=exact_gelu, **sizes())
    model = models.BertPretrainerV2(encoder_network=encoder, mlm_activation=exact_gelu)
    model(inputs_of(IDS[0]))
    transform = "cls.predictions.transform"
    like = {
        "encoder": node(by_attribute(tf2_paths(values, old=False))),
        "masked_lm": node(
            {
                "dense/kernel": values[f"{transform}.dense.weight"].T,
                "dense/bias": values[f"{transform}.dense.bias"],
                "layer_norm/gamma": values[f"{transform}.LayerNorm.weight"],
                "layer_norm/beta": values[f"{transform}.LayerNorm.bias"],
                "bias": values["cls.predictions.bias"],
            }
        ),
    }
    save_object(prefix, fill(model.checkpoint_items, like))
    logits = (model(inputs_of(ids))["mlm_logits"][0].numpy() for ids in IDS)
    outputs = {f"logits.{i}": found for i, found in enumerate(logits)}
    save_file(outputs, prefix.parent / "outputs.safetensors")


def main() -> None:
    values = backbone()
    whole = values | heads()
    save_tf1(release("tf1", whole), whole, slots=True)
    save_tf1(release("sharded", whole), whole, slots=False, devices=3)
    cast, floats = mixed(values)
    save_tf1(release("mixed", floats), cast, slots=False)
    save_encoder(release("tf2", values), values)
    one = {name: value for name, value in whole.items() if "relationship" not in name}
    save_pretrainer(release("tf2-pretrainer", one), one)
    old = tf.train.Checkpoint(encoder=node(tf2_paths(values, old=True)))
    save_object(release("tf2-old", values), old)
    for folder in sorted(FOLDER.iterdir()):
        print(folder.name, *sorted(path.name for path in folder.iterdir()))
        for name, shape in tf.train.list_variables(str(folder / "bert_model.ckpt"))[:6]:
            print("   ", name, shape)
    print("TensorFlow", tf.__version__)


if __name__ == "__main__":
    main()
