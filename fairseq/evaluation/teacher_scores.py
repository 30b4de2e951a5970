"""How a student does beside its teacher, sample by sample."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fairseq.criterions.base import predicted_positions
from fairseq.distributed.device import choose_device
from fairseq.errors import ConfigError
from fairseq.files.io import atomic_write
from fairseq.hub.load import load_by_settings
from fairseq.models.base import BaseFairseqModel
from fairseq.ops.linear_distillation import linear_distillation
from fairseq.protocols import Sample
from fairseq.report.charts import canvas
from fairseq.tasks import validation
from fairseq.teacher import Teacher, load_teacher
from fairseq.utils import move_to_device

COLUMNS = ("subset", "id", "length", "predicted", "student_bits", "teacher_bits", "kl_bits")


def write_sample_scores(flat: Mapping[str, Any], path: Path, plot: Path | None = None) -> int:
    """Write a CSV file with a line for each sample: its length and bits per predicted token.

    Columns are ``COLUMNS``: the cross-entropies of student and teacher, and KL(teacher || student)
    at temperature 1, each the mean over the predicted tokens of the sample.

    Args:
        flat: flat settings, see :func:`fairseq.evaluation.validate`; the student is ``path``,
            its own settings or ``teacher_path`` name the teacher.
        path: the file to write.
        plot: a PNG file: the student's bits against the teacher's, a point for each sample.

    Returns:
        the number of samples.

    Raises:
        ConfigError: if no teacher is named.
        FairseqError: if there is to be a plot, and matplotlib is not installed.
    """
    models, config, task = load_by_settings(flat)
    if not getattr(config.criterion, "teacher_path", None):
        raise ConfigError(
            "--per-sample compares with a teacher: evaluate a distilled student, or name one with "
            "--criterion distillation --teacher-path FILE"
        )
    device = choose_device(config)
    student = models[0].to(device).eval()
    teacher = load_teacher(config, task, student)
    points: list[tuple[float, float]] = []
    # before anything is computed: a missing library is told at once
    draw = None if plot is None else _drawing(plot)
    with atomic_write(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for subset in validation.valid_subsets(config):
            task.load_dataset(subset, combine=validation.joins(config, subset), epoch=1)
            batches = validation.valid_batches(config, task, student, subset)
            for sample in batches.next_epoch_itr(shuffle=False):
                for row in _rows(student, teacher, sample, task.target_dictionary.pad(), device):
                    writer.writerow([subset, *row])
                    points.append((float(row[4]), float(row[3])))
    if draw is not None:
        draw(points)
    return len(points)


def _drawing(path: Path) -> Callable[[list[tuple[float, float]]], None]:
    """Return a function that draws points (teacher, student); fail now if nothing can be drawn."""
    figure, axes = canvas((5.1, 4.6))

    def draw(points: list[tuple[float, float]]) -> None:
        axes.scatter(*zip(*points, strict=True), s=8, alpha=0.5)
        ends = min(map(min, points)), max(map(max, points))
        axes.plot(ends, ends, linewidth=1)  # as good as the teacher
        axes.set_xlabel("teacher, bits per predicted token")
        axes.set_ylabel("student")
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=120)

    return draw


def _rows(
    student: BaseFairseqModel,
    teacher: Teacher,
    sample: Sample,
    pad: int,
    device: torch.device,
) -> Iterator[list[Any]]:
    """Yield the values of a batch's samples, without the first column."""
    sample = move_to_device(sample, device)
    if not sample:
        return
    net_input, positions_N = sample["net_input"], predicted_positions(sample, pad)
    target_N = sample["target"].reshape(-1)[positions_N]
    with torch.no_grad():
        student_operands = student(**net_input, predicted_positions=positions_N)[0]
        teacher_operands = teacher.outputs(net_input, positions_N)[0]
        both = linear_distillation(student_operands, teacher_operands, target_N)
        teacher_N = teacher_operands.losses(target_N)
    tokens_BT = net_input["src_tokens"]
    row_N = positions_N // tokens_BT.shape[1]
    values_3N = torch.stack([both.nll_N, teacher_N, both.divergence_N]).double() / math.log(2)
    # predicted tokens lie flat: each is added to the row of the batch that it comes from
    sums_3B = values_3N.new_zeros(3, len(tokens_BT)).index_add_(1, row_N, values_3N).tolist()
    counts_B = torch.bincount(row_N, minlength=len(tokens_BT)).tolist()
    lengths_B = tokens_BT.ne(pad).sum(1).tolist()
    for place, index in enumerate(sample["id"].tolist()):
        # masks are drawn, so a short sample may predict nothing: its means are 0
        means = [sums_B[place] / max(1, counts_B[place]) for sums_B in sums_3B]
        yield [index, lengths_B[place], counts_B[place], *(f"{mean:.6f}" for mean in means)]
