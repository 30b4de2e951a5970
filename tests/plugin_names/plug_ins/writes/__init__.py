"""Components that complete their settings while they are built, as the original lets them."""

from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.models import register_model
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask


@register_task("writing_lm", dataclass=LanguageModelingConfig)
class WritingTask(LanguageModelingTask):
    @classmethod
    def setup_task(cls, cfg, **kwargs):
        cfg.add_bos_token = True
        return super().setup_task(cfg, **kwargs)

    def build_model(self, cfg, from_checkpoint=False):
        cfg.dropout = 0.25
        return super().build_model(cfg, from_checkpoint)


@register_model("writing_transformer", dataclass=TransformerLanguageModelConfig)
class WritingModel(TransformerLanguageModel):
    @classmethod
    def build_model(cls, args, task):
        args.attention_dropout = 0.125
        args.max_target_positions = 40
        return super().build_model(args, task)


@register_criterion("writing_cross_entropy", dataclass=CrossEntropyCriterionConfig)
class WritingCriterion(CrossEntropyCriterion):
    @classmethod
    def build_criterion(cls, cfg, task):
        cfg.sentence_avg = True
        return super().build_criterion(cfg, task)
