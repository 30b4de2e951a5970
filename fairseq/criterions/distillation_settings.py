"""The settings of distillation, what they weigh, and the sizes of models that it compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairseq.config.schema import FairseqDataclass, option, with_values
from fairseq.criterions.base import LossBackend
from fairseq.errors import ConfigError
from fairseq.ops.linear_distillation import check_kernel_can
from fairseq.protocols import Model
from fairseq.utils import drops_layers


@dataclass
class DistillationConfig(FairseqDataclass):
    """Settings of distillation."""

    teacher_path: str | None = option(
        None, "checkpoint, or folder of Hugging Face, of the teacher", new=True, path=True
    )
    teacher_dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "type the teacher runs in", new=True
    )
    teacher_overrides: str = option("{}", "a dict that replaces settings of the teacher", new=True)
    teacher_cache: str | None = option(
        None,
        "folder of stored outputs (fairseq-validate --write-teacher-cache)",
        new=True,
        path=True,
    )
    alpha_ce: float = option(0.5, "weight of the divergence from the teacher", new=True, minimum=0)
    alpha_mlm: float | None = option(
        None, "weight of the masked-LM loss (0.5 for --task masked_lm)", new=True, minimum=0
    )
    alpha_clm: float | None = option(
        None, "weight of the causal-LM loss (0.5 for --task language_modeling)", new=True, minimum=0
    )
    alpha_mse: float = option(
        0.0, "weight of the squared difference of logits", new=True, minimum=0
    )
    alpha_cos: float = option(
        0.0, "weight of the cosine distance of the last states", new=True, minimum=0
    )
    distillation_temperature: float = option(
        2.0, "both distributions are softened by it; the divergence is multiplied by its square",
        new=True, above=0,
    )  # fmt: skip
    restrict_ce_to_mask: bool = option(
        False, "compare distributions at the masked tokens only, not at all", new=True
    )
    divergence: Literal["forward", "reverse", "jsd"] = option(
        "forward", "KL(teacher || student), KL(student || teacher), or their generalised JSD",
        new=True,
    )  # fmt: skip
    jsd_beta: float = option(
        0.5, "share of the teacher in the mixture of jsd", new=True, above=0, below=1
    )
    pkd_weight: float = option(
        0.0,
        "weight of the distance of directions of hidden states, layer by layer",
        new=True,
        minimum=0,
    )
    layer_map: str = option(
        "", "pairs TEACHER:STUDENT of layers to compare, such as 0:0,2:1 (evenly spread)", new=True
    )
    minilm_attention_weight: float = option(
        0.0, "weight of the divergence of the last layers' attention", new=True, minimum=0
    )
    minilm_value_weight: float = option(
        0.0, "weight of the divergence of the last layers' value relations", new=True, minimum=0
    )
    minilm_relation_heads: int = option(
        0, "cut both sides into N heads (0: as they are)", new=True, minimum=0
    )
    loss_backend: LossBackend = option(
        "auto", "how the vocabulary projection is computed", new=True
    )


def weights_of_terms(cfg: DistillationConfig, masked: bool) -> dict[str, float]:
    """Return the weight of each term; refuse those that the task cannot have."""
    own, other = ("alpha_mlm", "alpha_clm") if masked else ("alpha_clm", "alpha_mlm")
    if getattr(cfg, other):
        task, right = ("masked_lm", own) if masked else ("language_modeling", own)
        raise ConfigError(
            f"--{other.replace('_', '-')} {getattr(cfg, other)}: --task {task} trains with "
            f"--{right.replace('_', '-')}; give that, and leave the other out (or 0)"
        )
    stated = getattr(cfg, own)
    alphas = {
        "nll": 0.5 if stated is None else stated,
        "ce": cfg.alpha_ce,
        "mse": cfg.alpha_mse,
        "cos": cfg.alpha_cos,
        "pkd": cfg.pkd_weight,
        "attention": cfg.minilm_attention_weight,
        "value": cfg.minilm_value_weight,
    }
    if min(alphas.values()) < 0 or not any(alphas.values()):
        raise ConfigError(
            f"weights of distillation must not be negative, and one must be positive: {alphas}"
        )
    if cfg.distillation_temperature <= 0 or not 0 < cfg.jsd_beta < 1:
        raise ConfigError("--distillation-temperature must be positive, --jsd-beta inside (0, 1)")
    if cfg.loss_backend == "triton":
        check_kernel_can(cfg.divergence, cfg.alpha_mse, bool(cfg.teacher_cache))
    if cfg.teacher_cache and masked and not cfg.restrict_ce_to_mask:
        raise ConfigError(
            "--teacher-cache holds what the teacher says at predicted tokens: masked models need "
            "--restrict-ce-to-mask with it"
        )
    return alphas


def alone(cfg: DistillationConfig, masked: bool) -> DistillationConfig:
    """Return the settings under which the loss is the student's own, with the weight 1."""
    own = {"alpha_mlm": 1.0} if masked else {"alpha_clm": 1.0}
    return with_values(
        cfg, alpha_ce=0.0, alpha_mse=0.0, alpha_cos=0.0, pkd_weight=0.0,
        minilm_attention_weight=0.0, minilm_value_weight=0.0, loss_backend="reference", **own,
    )  # fmt: skip


def read_layer_map(text: str) -> dict[int, int]:
    """Return student's layer -> teacher's layer."""
    try:
        pairs = [pair.split(":") for pair in text.split(",") if pair]
        teacher_of = {int(own): int(other) for other, own in pairs}
        negative = any(layer < 0 for pair in teacher_of.items() for layer in pair)
        if negative or len(teacher_of) < len(pairs):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--layer-map must be pairs TEACHER:STUDENT such as 0:0,2:1, each student's layer "
            f"once, not {text!r}"
        ) from None
    return teacher_of


class Stack:
    """The sizes of a model's layers.

    Raises:
        ConfigError: if the model does not tell them.
    """

    def __init__(self, model: Model) -> None:
        body = getattr(model, "decoder", None)
        if body is None:
            body = getattr(getattr(model, "encoder", None), "sentence_encoder", None)
        if body is None or not hasattr(body, "layers"):
            raise ConfigError(
                f"{type(model).__name__} does not tell its layers: of its terms only those of "
                "logits can be used (--alpha-ce, --alpha-mse)"
            )
        shape = body.layers[0].shape
        self.layers, self.heads, self.width = len(body.layers), shape.heads, shape.embed_dim
        last = getattr(body, "project_out_dim", None)
        self.features = self.width if last is None else last.out_features
        self.drops_layers = drops_layers(model)

    def width_of(self, layer: int) -> int:
        """Return the width of a layer's output."""
        return self.features if layer == self.layers - 1 else self.width

    def check_relations(self, teacher: Stack, heads: int) -> None:
        """Refuse numbers of heads that cannot be compared."""
        if heads < 0 or (not heads and self.heads != teacher.heads):
            raise ConfigError(
                f"the student has {self.heads} heads, the teacher {teacher.heads}: cut both into "
                "the same number with --minilm-relation-heads"
            )
        for width in (self.width, teacher.width):
            if heads and width % heads:
                raise ConfigError(f"--minilm-relation-heads {heads} does not divide {width}")
