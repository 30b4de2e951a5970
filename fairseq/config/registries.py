"""The registries of the house, filled from the catalogue: importing them imports no component.

The packages of the components (``fairseq.models``, ``fairseq.tasks``, ...) hand them on under the
names that plug-ins import, with the decorators that add rows.
"""

from __future__ import annotations

from typing import Any

from fairseq import catalog
from fairseq.config.registry import DataclassView, Registry

MODEL_REGISTRY = Registry("model", catalog.MODELS)
MODEL_DATACLASS_REGISTRY = DataclassView(MODEL_REGISTRY)
# architecture -> function that fills in defaults, and architecture -> name of its model
ARCH_CONFIG_REGISTRY = Registry(
    "architecture", {arch: target for arch, (_, target) in catalog.ARCHITECTURES.items()}
)
ARCH_MODEL_NAME_REGISTRY = {arch: model for arch, (model, _) in catalog.ARCHITECTURES.items()}
ARCH_MODEL_INV_REGISTRY: dict[str, list[str]] = {}
for _arch, _model in ARCH_MODEL_NAME_REGISTRY.items():
    ARCH_MODEL_INV_REGISTRY.setdefault(_model, []).append(_arch)


class _ArchitectureModels(Registry):
    """Architecture -> model class."""

    def __getitem__(self, name: str) -> Any:
        ARCH_CONFIG_REGISTRY[name]  # an unknown name gets the error with the suggestion
        return MODEL_REGISTRY[ARCH_MODEL_NAME_REGISTRY[name]]


ARCH_MODEL_REGISTRY = _ArchitectureModels("architecture", ARCH_MODEL_NAME_REGISTRY)
TASK_REGISTRY = Registry("task", catalog.TASKS)
CRITERION_REGISTRY = Registry("criterion", catalog.CRITERIONS)
OPTIMIZER_REGISTRY = Registry("optimizer", catalog.OPTIMIZERS)
LR_SCHEDULER_REGISTRY = Registry("lr_scheduler", catalog.LR_SCHEDULERS)
BPE_REGISTRY = Registry("bpe", catalog.BPES)
TOKENIZER_REGISTRY = Registry("tokenizer", catalog.TOKENIZERS)

# flag -> what it chooses from
CHOICES: dict[str, Registry] = {
    "task": TASK_REGISTRY,
    "arch": ARCH_CONFIG_REGISTRY,
    "criterion": CRITERION_REGISTRY,
    "optimizer": OPTIMIZER_REGISTRY,
    "lr_scheduler": LR_SCHEDULER_REGISTRY,
    "bpe": BPE_REGISTRY,
    "tokenizer": TOKENIZER_REGISTRY,
}


def model_class(name: str) -> Any:
    """Return the model class behind an architecture or model name."""
    is_model = name in MODEL_REGISTRY and name not in ARCH_CONFIG_REGISTRY
    return (MODEL_REGISTRY if is_model else ARCH_MODEL_REGISTRY)[name]
