"""Linear classifiers of features.

Shapes: S sentences, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.catalog import PROBE_SOLVERS
from fairseq.errors import ConfigError, did_you_mean
from fairseq.rng import derive_seed

# Weights of the squared norm, from strong to weak: each begins where the one before ended.
L2_GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
RIDGE = 1e-3


@dataclass(frozen=True)
class Split:
    """Features (S, D) and classes (S,), int64; -1 is a class that the training data lack."""

    features_SD: Tensor
    class_S: Tensor


Classifier = Callable[[Tensor], Tensor]


def accuracy(classifier: Classifier, split: Split) -> float:
    """Return the share of the sentences whose class has the highest score."""
    with torch.no_grad():
        best_S = classifier(split.features_SD).argmax(1)
    return float((best_S == split.class_S).double().mean())


def fit(
    solver: str, train: Split, valid: Split, classes: int, seed: int = 1
) -> tuple[Classifier, dict[str, float]]:
    """Fit a classifier; return it and what was chosen on the validation data.

    Args:
        solver: ``lbfgs``, multinomial logistic regression to convergence on standardised features;
            ``sgd``, the steps of the published probe; ``ridge``, in closed form.
        train: what is fitted.
        valid: what chooses the strength of the penalty (of ``lbfgs``).
        classes: K.
        seed: of order and dropout (of ``sgd``).

    Raises:
        ConfigError: for an unknown solver.
    """
    if solver == "lbfgs":
        return _logistic(train, valid, classes)
    if solver == "sgd":
        return _published(train, classes, seed), {}
    if solver == "ridge":
        return _ridge(train, classes), {"ridge": RIDGE}
    raise ConfigError(
        f"--solver {solver}{did_you_mean(solver, PROBE_SOLVERS)}: choose {', '.join(PROBE_SOLVERS)}"
    )


def _logistic(train: Split, valid: Split, classes: int) -> tuple[Classifier, dict[str, float]]:
    """Minimise mean cross-entropy + l2/2 |W|^2 for every l2; keep what validates best."""
    x_SD = train.features_SD
    mean_D, scale_D = x_SD.mean(0), x_SD.std(0)
    # features that never change, such as those behind the end of all sentences, stay zero
    scale_D = torch.where(scale_D > 1e-6, scale_D, 1.0)
    x_SD = (x_SD - mean_D) / scale_D
    weight_KD = torch.zeros(classes, x_SD.shape[1], requires_grad=True)
    bias_K = torch.zeros(classes, requires_grad=True)
    best, chosen = -1.0, 0.0
    for l2 in L2_GRID:
        optimizer = torch.optim.LBFGS(
            [weight_KD, bias_K], max_iter=200, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.Optimizer = optimizer, l2: float = l2) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x_SD, weight_KD, bias_K), train.class_S)
            loss = loss + l2 / 2 * weight_KD.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        fitted = _standardised(weight_KD.detach().clone(), bias_K.detach().clone(), mean_D, scale_D)
        score = accuracy(fitted, valid)
        # of equal ones the stronger penalty stays
        if score > best:
            best, chosen, classifier = score, l2, fitted
    return classifier, {"l2": chosen}


def _standardised(weight_KD: Tensor, bias_K: Tensor, mean_D: Tensor, scale_D: Tensor) -> Classifier:
    return lambda x_SD: F.linear((x_SD - mean_D) / scale_D, weight_KD, bias_K)


def _published(train: Split, classes: int, seed: int) -> Classifier:
    """Run the published recipe: AdamW at 1e-3, batches of 512, 50 epochs, dropout 0.1 on features.

    The rate rises for 50 steps and falls linearly to zero; the last weights count.

    Source: the code published with Liu et al. 2023 (Same Pre-training Loss, Better Downstream).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe"))
    head = nn.Linear(train.features_SD.shape[1], classes)
    bound = head.in_features**-0.5
    for parameter in head.parameters():  # torch's own start, from our generator
        parameter.data.uniform_(-bound, bound, generator=generator)
    size, epochs, warmup = 512, 50, 50
    total = epochs * -(-len(train.class_S) // size)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(train.class_S), generator=generator).split(size):
            # the lower of two lines, one that rises and one that falls to zero
            rate = min(1.0, step / warmup, (total - step) / max(1, total - warmup))
            optimizer.param_groups[0]["lr"] = 1e-3 * rate
            x_SD = train.features_SD[rows]
            # dropout from our generator: that of torch would depend on what ran before
            kept_SD = torch.rand(x_SD.shape, generator=generator) >= 0.1
            loss = F.cross_entropy(head(x_SD * kept_SD / 0.9), train.class_S[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return head


def _ridge(train: Split, classes: int) -> Classifier:
    """Solve least squares on rows of length one, targets one-hot minus 1/K, in closed form.

    The smaller of the two systems is solved: of features, or (the kernel form) of sentences.

    Source: the adversarial objective of Liu et al. 2023, as published.
    """
    x_SD = F.normalize(train.features_SD.double(), dim=1)
    # minus the mean of a one-hot row, as there is no bias to take it up
    target_SK = F.one_hot(train.class_S, classes).double() - 1 / classes
    # both give the same weights: X'(XX' + rI)^-1 = (X'X + rI)^-1 X'
    if x_SD.shape[0] < x_SD.shape[1]:
        gram_SS = x_SD @ x_SD.t()
        gram_SS.diagonal().add_(RIDGE)
        weight_DK = x_SD.t() @ torch.linalg.solve(gram_SS, target_SK)
    else:
        gram_DD = x_SD.t() @ x_SD
        gram_DD.diagonal().add_(RIDGE)
        weight_DK = torch.linalg.solve(gram_DD, x_SD.t() @ target_SK)
    return lambda features_SD: F.normalize(features_SD.double(), dim=1) @ weight_DK
