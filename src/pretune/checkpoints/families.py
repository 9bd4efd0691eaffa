"""What the parameters are called here and in the published layout: data, used in both directions.

A rule pairs one of our names with theirs; several of theirs are concatenated along the first
dimension (query, key and value share one matrix here). `{i}` stands for a layer's number, and a
name without `.weight` or `.bias` means both. Where layers are of two stacks, an encoder and a
decoder, ours are numbered through, theirs begin again at 0.
In a `transposed` rule, their matrices are `[in, out]` (GPT-2's Conv1D).
"""

from __future__ import annotations

from dataclasses import replace

from pretune.checkpoints.names import Family, Head, Rule
from pretune.models.backbone import Backbone
from pretune.models.bert import BertModel
from pretune.models.classics.nnlm import NnlmModel
from pretune.models.classics.rnn import RnnModel
from pretune.models.distilbert import DistilBertModel
from pretune.models.gpt2 import Gpt2Model
from pretune.models.transformer import TransformerModel


def _rules(
    *pairs: tuple[str, str | tuple[str, ...]], transposed: bool = False, stack: int = 0
) -> tuple[Rule, ...]:
    return tuple(
        Rule(ours, (theirs,) if isinstance(theirs, str) else theirs, transposed, stack)
        for ours, theirs in pairs
    )


BERT_MLM = _rules(
    ("transform", "cls.predictions.transform.dense"),
    ("norm", "cls.predictions.transform.LayerNorm"),
    ("bias", "cls.predictions.bias"),
)
#: transformers has no field: it opens the rest, which is a model of its class. (In `heads`, of two
#: with one class the last is what `config.json` is taken to mean where it says no more.)
CRF_TAGGER = _rules(
    ("classifier", "classifier"),
    *((name, name) for name in ("crf.transitions", "crf.start", "crf.end")),
)
BERT_TIED = {
    "cls.predictions.decoder.weight": "embeddings.tokens.weight",
    "cls.predictions.decoder.bias": "bias",
}

BERT = Family(
    model_type="bert",
    prefix="bert.",
    backbone=BertModel,
    rules=_rules(
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.segments.weight", "embeddings.token_type_embeddings.weight"),
        ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        (
            "layers.{i}.attention.qkv",
            (
                "encoder.layer.{i}.attention.self.query",
                "encoder.layer.{i}.attention.self.key",
                "encoder.layer.{i}.attention.self.value",
            ),
        ),
        ("layers.{i}.attention.output", "encoder.layer.{i}.attention.output.dense"),
        ("layers.{i}.attention_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
        ("layers.{i}.feed_forward.up", "encoder.layer.{i}.intermediate.dense"),
        ("layers.{i}.feed_forward.down", "encoder.layer.{i}.output.dense"),
        ("layers.{i}.feed_forward_norm", "encoder.layer.{i}.output.LayerNorm"),
        ("pooler", "pooler.dense"),
    ),
    heads={
        "backbone": Head("BertModel"),
        "sequence_classification": Head(
            "BertForSequenceClassification",
            _rules(("classifier", "classifier")),
            pooled="classifier",
        ),
        "multiple_choice": Head(
            "BertForMultipleChoice", _rules(("classifier", "classifier")), pooled="classifier"
        ),
        "token_classification_crf": Head("BertForTokenClassification", CRF_TAGGER),
        "token_classification": Head(
            "BertForTokenClassification", _rules(("classifier", "classifier"))
        ),
        "question_answering": Head(
            "BertForQuestionAnswering", _rules(("classifier", "qa_outputs"))
        ),
        "masked_lm": Head("BertForMaskedLM", BERT_MLM, BERT_TIED),
        "pretraining": Head(
            "BertForPreTraining",
            (*BERT_MLM, *_rules(("relationship", "cls.seq_relationship"))),
            BERT_TIED,
            pooled="relationship",
        ),
    },
    ignored=("embeddings.position_ids", "embeddings.sinusoids"),
    optional=("pooler",),
)
#: With sinusoids for positions: transformers has no such model, and would make up positions.
BERT_SINUSOIDAL = replace(BERT, model_type="bert-sinusoidal", published=False)

DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert.",
    backbone=DistilBertModel,
    rules=_rules(
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight"),
        ("embeddings.positions.weight", "embeddings.position_embeddings.weight"),
        ("embeddings.norm", "embeddings.LayerNorm"),
        (
            "layers.{i}.attention.qkv",
            (
                "transformer.layer.{i}.attention.q_lin",
                "transformer.layer.{i}.attention.k_lin",
                "transformer.layer.{i}.attention.v_lin",
            ),
        ),
        ("layers.{i}.attention.output", "transformer.layer.{i}.attention.out_lin"),
        ("layers.{i}.attention_norm", "transformer.layer.{i}.sa_layer_norm"),
        ("layers.{i}.feed_forward.up", "transformer.layer.{i}.ffn.lin1"),
        ("layers.{i}.feed_forward.down", "transformer.layer.{i}.ffn.lin2"),
        ("layers.{i}.feed_forward_norm", "transformer.layer.{i}.output_layer_norm"),
    ),
    heads={
        "backbone": Head("DistilBertModel"),
        "sequence_classification": Head(
            "DistilBertForSequenceClassification",
            _rules(("dense", "pre_classifier"), ("classifier", "classifier")),
        ),
        "multiple_choice": Head(
            "DistilBertForMultipleChoice",
            _rules(("dense", "pre_classifier"), ("classifier", "classifier")),
        ),
        "token_classification_crf": Head("DistilBertForTokenClassification", CRF_TAGGER),
        "token_classification": Head(
            "DistilBertForTokenClassification", _rules(("classifier", "classifier"))
        ),
        "question_answering": Head(
            "DistilBertForQuestionAnswering", _rules(("classifier", "qa_outputs"))
        ),
        "masked_lm": Head(
            "DistilBertForMaskedLM",
            _rules(
                ("transform", "vocab_transform"),
                ("norm", "vocab_layer_norm"),
                ("bias", "vocab_projector.bias"),
            ),
            {"vocab_projector.weight": "embeddings.tokens.weight"},
        ),
    },
)

GPT2 = Family(
    model_type="gpt2",
    prefix="transformer.",
    backbone=Gpt2Model,
    rules=(
        *_rules(
            ("embeddings.tokens.weight", "wte.weight"),
            ("embeddings.positions.weight", "wpe.weight"),
            ("layers.{i}.attention_norm", "h.{i}.ln_1"),
            ("layers.{i}.feed_forward_norm", "h.{i}.ln_2"),
            ("final_norm", "ln_f"),
        ),
        *_rules(
            ("layers.{i}.attention.qkv", "h.{i}.attn.c_attn"),
            ("layers.{i}.attention.output", "h.{i}.attn.c_proj"),
            ("layers.{i}.feed_forward.up", "h.{i}.mlp.c_fc"),
            ("layers.{i}.feed_forward.down", "h.{i}.mlp.c_proj"),
            transposed=True,
        ),
    ),
    heads={
        "backbone": Head("GPT2Model"),
        "sequence_classification": Head(
            "GPT2ForSequenceClassification", _rules(("classifier.weight", "score.weight"))
        ),
        "causal_lm": Head("GPT2LMHeadModel", tied={"lm_head.weight": "embeddings.tokens.weight"}),
    },
    # The causal mask, which older files carry along.
    ignored=("h.{i}.attn.bias", "h.{i}.attn.masked_bias"),
)


def _stack(name: str, stack: int) -> tuple[Rule, ...]:
    """What the layers of Marian's encoder and decoder have in common."""
    layer = f"{name}.layers.{{i}}"
    attention = tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv")
    return _rules(
        ("layers.{i}.attention.qkv", attention),
        ("layers.{i}.attention.output", f"{layer}.self_attn.out_proj"),
        ("layers.{i}.attention_norm", f"{layer}.self_attn_layer_norm"),
        ("layers.{i}.feed_forward.up", f"{layer}.fc1"),
        ("layers.{i}.feed_forward.down", f"{layer}.fc2"),
        ("layers.{i}.feed_forward_norm", f"{layer}.final_layer_norm"),
        stack=stack,
    )


MARIAN = Family(
    model_type="marian",
    prefix="model.",
    backbone=TransformerModel,
    rules=(
        *_rules(
            ("embeddings.tokens.weight", "shared.weight"),
            ("embeddings.targets.weight", "decoder.embed_tokens.weight"),
            ("source_norm", "encoder.layer_norm"),
            ("final_norm", "decoder.layer_norm"),
        ),
        *_stack("encoder", 0),
        *_stack("decoder", 1),
        *_rules(
            ("layers.{i}.cross.query", "decoder.layers.{i}.encoder_attn.q_proj"),
            (
                "layers.{i}.cross.kv",
                (
                    "decoder.layers.{i}.encoder_attn.k_proj",
                    "decoder.layers.{i}.encoder_attn.v_proj",
                ),
            ),
            ("layers.{i}.cross.output", "decoder.layers.{i}.encoder_attn.out_proj"),
            ("layers.{i}.cross_norm", "decoder.layers.{i}.encoder_attn_layer_norm"),
            stack=1,
        ),
    ),
    heads={
        "backbone": Head("MarianModel"),
        "translation": Head(
            "MarianMTModel",
            _rules(("bias", "final_logits_bias")),
            {"lm_head.weight": "embeddings.tokens.weight"},
        ),
    },
    ignored=tuple(
        f"{stack}.{name}.weight"
        for stack in ("encoder", "decoder")
        for name in ("embed_tokens", "embed_positions")
    ),
)
#: Where source and target have a table each, the source's has another name.
MARIAN_TWO_TABLES = replace(
    MARIAN,
    rules=(
        Rule("embeddings.tokens.weight", ("encoder.embed_tokens.weight",)),
        *(rule for rule in MARIAN.rules if rule.ours != "embeddings.tokens.weight"),
    ),
    heads={
        **MARIAN.heads,
        "translation": replace(
            MARIAN.heads["translation"], tied={"lm_head.weight": "embeddings.targets.weight"}
        ),
    },
)
#: LayerNorm first: Marian has no such model.
TRANSFORMER, TRANSFORMER_TWO_TABLES = (
    replace(family, model_type="transformer", published=False)
    for family in (MARIAN, MARIAN_TWO_TABLES)
)


def _own(*names: str) -> tuple[Rule, ...]:
    """Names that nobody has published a layout for: theirs are ours."""
    return _rules(*((name, name) for name in names))


def _classic(kind: str, model_type: str, backbone: type[Backbone], *names: str) -> Family:
    """A language model from before the Transformer: in no library, so in a layout of our own."""
    lm = Head(f"{kind}ForCausalLM", _own("output.weight", "bias"))
    return Family(
        model_type=model_type,
        prefix="backbone.",
        backbone=backbone,
        rules=_own("embeddings.tokens.weight", *names),
        heads={"backbone": Head(f"{kind}Model"), "causal_lm": lm},
        published=False,
    )


NNLM = _classic("Nnlm", "nnlm", NnlmModel, "embeddings.start.weight", "layers.{i}.hidden")
RNN = _classic("Rnn", "rnn", RnnModel, "layers.{i}.input", "layers.{i}.recurrent")

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (BERT, BERT_SINUSOIDAL, DISTILBERT, GPT2, MARIAN, TRANSFORMER, NNLM, RNN)
}


#: Families of models with two tables, by the type of those with one.
TWO_TABLES = {family.model_type: family for family in (MARIAN_TWO_TABLES, TRANSFORMER_TWO_TABLES)}
