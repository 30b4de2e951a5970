"""The static name tables: what exists, and the file that is imported when it is asked for.

Adding a component of the house = one file + one row here. Plug-ins add rows with the decorators.
"""

from __future__ import annotations

TASKS = {
    "dummy_lm": "fairseq.tasks.dummy_lm:DummyLMTask",
    "dummy_masked_lm": "fairseq.tasks.dummy_lm:DummyMaskedLMTask",
    "language_modeling": "fairseq.tasks.language_modeling:LanguageModelingTask",
    "masked_lm": "fairseq.tasks.masked_lm:MaskedLMTask",
    "pcfg_masked_lm": "fairseq.tasks.pcfg_masked_lm:PcfgMaskedLMTask",
    "sentence_prediction": "fairseq.tasks.sentence_prediction:SentencePredictionTask",
    "sentence_ranking": "fairseq.tasks.sentence_ranking:SentenceRankingTask",
}

MODELS = {
    "ligo_roberta": "fairseq.growth.ligo_model:LigoRoberta",
    "ligo_transformer_lm": "fairseq.growth.ligo_model:LigoTransformerLanguageModel",
    "pcfg_lookup": "fairseq.models.pcfg_lookup:PcfgLookup",
    "roberta": "fairseq.models.roberta.model:RobertaModel",
    "transformer_lm": "fairseq.models.transformer_lm.model:TransformerLanguageModel",
}

_LM_PRESETS = "fairseq.models.transformer_lm.presets"
_LM_ARCHITECTURES = """
    transformer_lm transformer_lm_alibi transformer_lm_baevski_gbw
    transformer_lm_baevski_wiki103 transformer_lm_big transformer_lm_gpt transformer_lm_gpt2_big
    transformer_lm_gpt2_big_wide transformer_lm_gpt2_bigger transformer_lm_gpt2_medium
    transformer_lm_gpt2_small transformer_lm_gpt2_tiny transformer_lm_gpt3_13
    transformer_lm_gpt3_175 transformer_lm_gpt3_2_7 transformer_lm_gpt3_6_7
    transformer_lm_gpt3_large transformer_lm_gpt3_medium transformer_lm_gpt3_small
    transformer_lm_gpt3_xl
""".split()

# architecture -> (model, the function that fills in its defaults)
ARCHITECTURES = {
    "pcfg_lookup": ("pcfg_lookup", "fairseq.models:_no_preset"),
    "roberta": ("roberta", "fairseq.models.roberta.presets:base_architecture"),
    "roberta_base": ("roberta", "fairseq.models.roberta.presets:roberta_base_architecture"),
    "roberta_large": ("roberta", "fairseq.models.roberta.presets:roberta_large_architecture"),
    "roberta_prenorm": ("roberta", "fairseq.models.roberta.presets:roberta_prenorm_architecture"),
    "roberta_small": ("roberta", "fairseq.models.roberta.presets:roberta_small_architecture"),
    "roberta_tiny": ("roberta", "fairseq.models.roberta.presets:roberta_tiny_architecture"),
    "xlm": ("roberta", "fairseq.models.roberta.presets:xlm_architecture"),
    **{arch: ("transformer_lm", f"{_LM_PRESETS}:{arch}") for arch in _LM_ARCHITECTURES},
    "transformer_lm_gbw": ("transformer_lm", f"{_LM_PRESETS}:transformer_lm_baevski_gbw"),
    "transformer_lm_wiki103": ("transformer_lm", f"{_LM_PRESETS}:transformer_lm_baevski_wiki103"),
}
# the same sizes, with weights that are a learned function of a smaller model's
ARCHITECTURES |= {
    f"ligo_{arch}": (f"ligo_{model}", preset)
    for arch, (model, preset) in ARCHITECTURES.items()
    if f"ligo_{model}" in MODELS
}

CRITERIONS = {
    "adaptive_loss": "fairseq.criterions.adaptive_loss:AdaptiveLoss",
    "contrastive_weight_tying": (
        "fairseq.criterions.contrastive_weight_tying:ContrastiveWeightTyingCriterion"
    ),
    "cross_entropy": "fairseq.criterions.cross_entropy:CrossEntropyCriterion",
    "distillation": "fairseq.criterions.distillation:DistillationCriterion",
    "label_smoothed_cross_entropy": (
        "fairseq.criterions.label_smoothed_cross_entropy:LabelSmoothedCrossEntropyCriterion"
    ),
    "masked_lm": "fairseq.criterions.masked_lm:MaskedLmLoss",
    "masked_lm_adversarial": "fairseq.criterions.masked_lm_adversarial:MaskedLmAdversarial",
    "masked_lm_truth": "fairseq.criterions.masked_lm_truth:MaskedLmTruthCriterion",
    "sentence_prediction": ("fairseq.criterions.sentence_prediction:SentencePredictionCriterion"),
    "sentence_ranking": "fairseq.criterions.sentence_ranking:SentenceRankingCriterion",
}

OPTIMIZERS = {
    "adadelta": "fairseq.optim.optimizers:Adadelta",
    "adafactor": "fairseq.optim.adafactor:FairseqAdafactor",
    "adagrad": "fairseq.optim.optimizers:Adagrad",
    "adam": "fairseq.optim.adam:FairseqAdam",
    "adamax": "fairseq.optim.optimizers:FairseqAdamax",
    "muon": "fairseq.optim.muon:FairseqMuon",
    "nag": "fairseq.optim.optimizers:FairseqNAG",
    "sgd": "fairseq.optim.optimizers:SGD",
}

LR_SCHEDULERS = {
    "cosine": "fairseq.optim.lr_schedules:CosineLRSchedule",
    "fixed": "fairseq.optim.lr_schedules:FixedLRSchedule",
    "inverse_sqrt": "fairseq.optim.lr_schedules:InverseSquareRootSchedule",
    "manual": "fairseq.optim.lr_driven:ManualSchedule",
    "pass_through": "fairseq.optim.lr_driven:PassThroughScheduleSchedule",
    "polynomial_decay": "fairseq.optim.lr_schedules:PolynomialDecayLRSchedule",
    "reduce_lr_on_plateau": "fairseq.optim.lr_driven:ReduceLROnPlateauLRSchedule",
    "step": "fairseq.optim.lr_schedules:StepLRSchedule",
    "tri_stage": "fairseq.optim.lr_schedules:TriStageLRSchedule",
    "triangular": "fairseq.optim.lr_schedules:TriangularLRSchedule",
    "wsd": "fairseq.optim.lr_schedules:WSDSchedule",
}

BPES = {
    "byte_level": "fairseq.data.encoders.byte_level:ByteLevelBPE",
    "gpt2": "fairseq.data.encoders.gpt2_bpe:GPT2BPE",
    "sentencepiece": "fairseq.data.encoders.sentencepiece_bpe:SentencepieceBPE",
    "wordpiece": "fairseq.data.encoders.wordpiece:Wordpiece",
}

TOKENIZERS = {
    "space": "fairseq.data.encoders.space_tokenizer:SpaceTokenizer",
}

# ways to grow a checkpoint: name -> a method of fairseq/growth
GROWTH = {
    "aki": "fairseq.growth.bert2bert:aki",
    "copy": "fairseq.growth.copy:copy",
    "enlarge": "fairseq.growth.enlarge:enlarge",
    "extract": "fairseq.growth.depth:extract",
    "fpi": "fairseq.growth.bert2bert:fpi",
    "gstack": "fairseq.growth.depth:gstack",
    "hyperclone": "fairseq.growth.enlarge:hyperclone",
    "interlace": "fairseq.growth.depth:interlace",
    "interpolate": "fairseq.growth.depth:interpolate",
    "lemon": "fairseq.growth.lemon:lemon",
    "ligo": "fairseq.growth.ligo:ligo",
    "mslt": "fairseq.growth.depth:mslt",
    "net2net": "fairseq.growth.net2net:net2net",
    "pool": "fairseq.growth.pool:pool",
    "random": "fairseq.growth.ligo_init:random",
    "stack": "fairseq.growth.depth:stack",
}

# What fairseq-hessian, fairseq-probe and fairseq-pcfg choose from; it stands here because --help
# does not wait for the libraries that do it.
# method -> probes (of lanczos: starting vectors; of hutch++: products) if none are asked for
HESSIAN_METHODS = {
    "hutchinson": 100, "hutch++": 99, "fisher": 100, "ggn": 100, "exact": 0, "lanczos": 4,
}  # fmt: skip
HESSIAN_MATRICES = ("hessian", "ggn")
HESSIAN_LABELS = ("data", "model")
HESSIAN_VECTORS = ("rademacher", "gaussian")
PROBE_FEATURES = ("positions", "mean", "first")
PROBE_SOLVERS = ("lbfgs", "sgd", "ridge")
SPAN_LABELS = ("likelihood", "viterbi", "map", "gold")

# What a lower floor asks a higher one for, when it is called: there is this one thing.
HOOKS = {"from_pretrained": "fairseq.hub.load:interface_of"}
