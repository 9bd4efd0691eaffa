"""Which tokenizer class belongs to which kind of model, as transformers 5.23 has it.

Source: `models/auto/tokenization_auto.py` there, without models of pictures and speech.
"""

from __future__ import annotations

from collections.abc import Mapping

#: What is written where no class is known: `tokenizer.json` is everything.
PLAIN = "PreTrainedTokenizerFast"
#: The class of OPUS-MT, and files that only it has; see `marian.py`.
MARIAN = "MarianTokenizer"
MARIAN_FILES = ("source.spm", "vocab.json")
#: How SentencePiece's files end.
PIECES = (".model", ".spm")

#: The kinds of models (`model_type` in `config.json`) of a class.
_TYPES = {
    "AlbertTokenizer": "albert yoso",
    "BarthezTokenizer": "barthez",
    "BartphoTokenizer": "bartpho",
    "BertGenerationTokenizer": "bert-generation",
    "BertJapaneseTokenizer": "bert-japanese",
    "BertTokenizer": (
        "bert convbert distilbert electra ernie layoutlm megatron-bert nezha nomic_bert qdqbert "
        "realm retribert squeezebert visual_bert"
    ),
    "BertweetTokenizer": "bertweet",
    "BigBirdTokenizer": "big_bird",
    "BioGptTokenizer": "biogpt",
    "BlenderbotSmallTokenizer": "blenderbot-small",
    "BlenderbotTokenizer": "blenderbot",
    "ByT5Tokenizer": "byt5",
    "CTRLTokenizer": "ctrl",
    "CamembertTokenizer": "camembert",
    "CanineTokenizer": "canine",
    "CodeLlamaTokenizer": "code_llama",
    "CohereTokenizer": "cohere cohere2",
    "CpmAntTokenizer": "cpmant",
    "CpmTokenizer": "cpm",
    "DPRQuestionEncoderTokenizer": "dpr",
    "DebertaTokenizer": "deberta",
    "DebertaV2Tokenizer": "deberta-v2",
    "EsmTokenizer": "esm",
    "FNetTokenizer": "fnet",
    "FSMTTokenizer": "fsmt",
    "FlaubertTokenizer": "flaubert",
    "FunnelTokenizer": "funnel",
    "GPT2Tokenizer": "codegen dbrx gpt2 gpt_neo gptj jais2 opt phi starcoder2",
    "GPTNeoXJapaneseTokenizer": "gpt_neox_japanese",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "GPTSw3Tokenizer": "gpt-sw3",
    "GemmaTokenizer": (
        "gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma t5gemma zaya"
    ),
    "HerbertTokenizer": "herbert",
    "LEDTokenizer": "led",
    "LukeTokenizer": "luke",
    "LxmertTokenizer": "lxmert",
    "M2M100Tokenizer": "m2m_100",
    "MBart50Tokenizer": "mbart50",
    "MBartTokenizer": "mbart",
    "MLukeTokenizer": "mluke",
    "MPNetTokenizer": "mpnet",
    "MarianTokenizer": "marian",
    "MarkupLMTokenizer": "markuplm",
    "MobileBertTokenizer": "mobilebert",
    "MvpTokenizer": "mvp",
    "MyT5Tokenizer": "myt5",
    "NllbTokenizer": "nllb nllb-moe",
    "OpenAIGPTTokenizer": "openai-gpt",
    "PLBartTokenizer": "plbart",
    "PegasusTokenizer": "pegasus",
    "PerceiverTokenizer": "perceiver",
    "PhobertTokenizer": "phobert",
    "ProphetNetTokenizer": "prophetnet",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
    "Qwen3_5Tokenizer": ("qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp"),
    "RagTokenizer": "rag",
    "ReformerTokenizer": "reformer",
    "RemBertTokenizer": "rembert",
    "RoCBertTokenizer": "roc_bert",
    "RoFormerTokenizer": "roformer",
    "RobertaTokenizer": (
        "bart data2vec-text ibert longformer mega mra roberta roberta-prelayernorm"
    ),
    "SplinterTokenizer": "splinter",
    "T5Tokenizer": "mt5 switch_transformers t5",
    "TapasTokenizer": "tapas",
    "XGLMTokenizer": "xglm",
    "XLMRobertaTokenizer": "gte jina_embeddings_v3 xlm-roberta xmod",
    "XLMTokenizer": "xlm",
    "XLNetTokenizer": "xlnet",
    # Those that read `tokenizer.json` as it is, whatever the settings say.
    PLAIN: (
        "arctic bigbird_pegasus camembertv2-base chatlm ernie4_5 ernie4_5_moe flex_olmo glm glm4 "
        "glm4_moe glm4_moe_lite gpt_bigcode granite granitemoe granitemoehybrid granitemoeshared "
        "h2ovl_chat hyperclovax internlm2 internlm3 iquestcoder jamba kimi_linear mimo_v2_flash "
        "minicpm3 minimax_m2 ministral ministral3 mistral mixtral modernbert modernbert-decoder "
        "nemotron nystromformer olmo2 olmo3 olmo_hybrid opencua pegasus_x persimmon phi3 phimoe "
        "stablelm umt5 xlm-roberta-xl"
    ),
}
#: The class of a kind of model.
CLASS_OF_TYPE: Mapping[str, str] = {
    kind: name for name, kinds in _TYPES.items() for kind in kinds.split()
}
#: Kinds whose folders often name a wrong class: that of the kind counts, whatever is named.
MISNAMED = frozenset(("qwen2", *_TYPES["Qwen3_5Tokenizer"].split())) - {"qwen3_5_text"}
