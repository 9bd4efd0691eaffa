"""Models one can read: each family is one file, equal in numbers to the published one."""

from pretune.models.attention import attention, attention_maps, attention_reference
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.bert import BertConfig, BertModel
from pretune.models.cache import KVCache
from pretune.models.classic import ClassicLM, ClassicModel, ClassicOutput, Reading
from pretune.models.config import ModelConfig, brief
from pretune.models.crf import CrfWeights, log_likelihood, marginals, viterbi
from pretune.models.distilbert import DistilBertConfig, DistilBertModel
from pretune.models.gpt2 import Gpt2Config, Gpt2Model
from pretune.models.heads import (
    HEADS,
    PooledHead,
    SequenceClassifier,
    causal_lm,
    chooser,
    masked_lm,
    pretraining,
    sequence_classifier,
    span_answerer,
    token_classifier,
    translator,
)
from pretune.models.language_model import DecoderState, LanguageModel
from pretune.models.layers import ModelOutput
from pretune.models.lora import (
    LearnedRows,
    LoraLinear,
    adapters,
    add_lora,
    learned_rows,
    merged_state,
)
from pretune.models.ngram import NGram, NGramState
from pretune.models.nnlm import NnlmConfig, NnlmModel, NnlmState
from pretune.models.rnn import RnnConfig, RnnModel, RnnState
from pretune.models.scores import Scores, score_tokens
from pretune.models.sizes import SIZES
from pretune.models.tagger import CrfTagger, TagScores, TokenClassifier
from pretune.models.token_heads import BertPreTraining, CausalLM, MaskedLM, PreTrainingOutput
from pretune.models.transformer import TransformerConfig, TransformerModel
from pretune.models.translator import Translator
from pretune.models.vocabulary import resize_vocabulary

__all__ = [
    "HEADS",
    "SIZES",
    "Backbone",
    "BertConfig",
    "BertModel",
    "BertPreTraining",
    "CausalLM",
    "ClassicLM",
    "ClassicModel",
    "ClassicOutput",
    "CrfTagger",
    "CrfWeights",
    "DecoderState",
    "DistilBertConfig",
    "DistilBertModel",
    "Embeddings",
    "Gpt2Config",
    "Gpt2Model",
    "KVCache",
    "LanguageModel",
    "LearnedRows",
    "LoraLinear",
    "MaskedLM",
    "ModelConfig",
    "ModelOutput",
    "NGram",
    "NGramState",
    "NnlmConfig",
    "NnlmModel",
    "NnlmState",
    "PooledHead",
    "PreTrainingOutput",
    "Reading",
    "RnnConfig",
    "RnnModel",
    "RnnState",
    "Scores",
    "SequenceClassifier",
    "TagScores",
    "TokenClassifier",
    "TransformerConfig",
    "TransformerModel",
    "Translator",
    "adapters",
    "add_lora",
    "attention",
    "attention_maps",
    "attention_reference",
    "brief",
    "causal_lm",
    "chooser",
    "learned_rows",
    "log_likelihood",
    "marginals",
    "masked_lm",
    "merged_state",
    "pretraining",
    "resize_vocabulary",
    "score_tokens",
    "sequence_classifier",
    "span_answerer",
    "token_classifier",
    "translator",
    "viterbi",
]
