"""The static name tables: what exists, and the file that is imported when it is asked for.

Adding a component of the house = one file + one row here. Plug-ins add rows with the decorators.
"""

from __future__ import annotations

TASKS = {
    "masked_lm": "fairseq.tasks.masked_lm:MaskedLMTask",
    "sentence_prediction": "fairseq.tasks.sentence_prediction:SentencePredictionTask",
}

MODELS = {
    "roberta": "fairseq.models.roberta.model:RobertaModel",
}

# architecture -> (model, the function that fills in its defaults)
ARCHITECTURES = {
    "roberta": ("roberta", "fairseq.models.roberta.model:base_architecture"),
    "roberta_base": ("roberta", "fairseq.models.roberta.model:roberta_base_architecture"),
    "roberta_large": ("roberta", "fairseq.models.roberta.model:roberta_large_architecture"),
    "roberta_prenorm": ("roberta", "fairseq.models.roberta.model:roberta_prenorm_architecture"),
    "roberta_small": ("roberta", "fairseq.models.roberta.model:roberta_small_architecture"),
    "roberta_tiny": ("roberta", "fairseq.models.roberta.model:roberta_tiny_architecture"),
    "xlm": ("roberta", "fairseq.models.roberta.model:xlm_architecture"),
}

CRITERIONS = {
    "cross_entropy": "fairseq.criterions.cross_entropy:CrossEntropyCriterion",
    "masked_lm": "fairseq.criterions.masked_lm:MaskedLmLoss",
    "sentence_prediction": ("fairseq.criterions.sentence_prediction:SentencePredictionCriterion"),
}

OPTIMIZERS = {
    "adadelta": "fairseq.optim.optimizers:Adadelta",
    "adafactor": "fairseq.optim.adafactor:FairseqAdafactor",
    "adagrad": "fairseq.optim.optimizers:Adagrad",
    "adam": "fairseq.optim.adam:FairseqAdam",
    "adamax": "fairseq.optim.optimizers:FairseqAdamax",
    "nag": "fairseq.optim.optimizers:FairseqNAG",
    "sgd": "fairseq.optim.optimizers:SGD",
}

LR_SCHEDULERS = {
    "cosine": "fairseq.optim.lr_schedules:CosineLRSchedule",
    "fixed": "fairseq.optim.lr_schedules:FixedLRSchedule",
    "inverse_sqrt": "fairseq.optim.lr_schedules:InverseSquareRootSchedule",
    "manual": "fairseq.optim.lr_external:ManualSchedule",
    "pass_through": "fairseq.optim.lr_external:PassThroughScheduleSchedule",
    "polynomial_decay": "fairseq.optim.lr_schedules:PolynomialDecayLRSchedule",
    "reduce_lr_on_plateau": "fairseq.optim.lr_external:ReduceLROnPlateauLRSchedule",
    "step": "fairseq.optim.lr_schedules:StepLRSchedule",
    "tri_stage": "fairseq.optim.lr_schedules:TriStageLRSchedule",
    "triangular": "fairseq.optim.lr_schedules:TriangularLRSchedule",
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
