"""The worked examples of CONTRIBUTING.md and the template in examples/plugin do train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, blocks

from fairseq.files.safe_load import safe_load

GUIDE = ROOT / "CONTRIBUTING.md"
LIMIT = 90
PARTS = ("model", "criterion", "task")
COMMON = (
    "--optimizer adam --lr 0.01 --batch-size 8 --tokens-per-sample 16 --max-update 2 --cpu "
    "--log-format none --no-epoch-checkpoints"
).split()
SMALL_ROBERTA = (
    "--arch roberta_tiny --encoder-layers 1 --encoder-embed-dim 16 --encoder-attention-heads 2 "
    "--encoder-ffn-embed-dim 16"
).split()
# Trains as fairseq-train does, once per line of standard input; a process of its own keeps what
# plug-ins register away from other tests.
DRIVER = """
import json, sys
from fairseq_cli import train, validate

for line in sys.stdin:
    arguments = json.loads(line)
    (validate if "--path" in arguments else train).run(arguments)
    print("done")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with text, dictionary and binarized data."""
    from fairseq_cli import preprocess

    folder = tmp_path_factory.mktemp("data")
    words = [f"word{number}" for number in range(20)]
    for split, lines in (("train", 64), ("valid", 16)):
        text = "\n".join(" ".join(words[start % 9 : start % 9 + 8]) for start in range(lines))
        (folder / f"{split}.txt").write_text(text + "\n", encoding="utf-8")
    texts = ["--trainpref", str(folder / "train.txt"), "--validpref", str(folder / "valid.txt")]
    preprocess.run(["--only-source", *texts, "--destdir", str(folder)])
    return folder


def run_all(command_lines: list[list[str]], folder: Path) -> None:
    """Run command lines one after the other in one process; fail with what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input="\n".join(json.dumps(arguments) for arguments in command_lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )
    assert done.stdout.count("done") == len(command_lines), done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_the_guide_is_short() -> None:
    assert len(GUIDE.read_text(encoding="utf-8").splitlines()) <= LIMIT


def test_each_worked_example_trains(tmp_path: Path, data: Path) -> None:
    package = tmp_path / "worked_examples"
    package.mkdir()
    for name, block in zip(PARTS, blocks(GUIDE, "python"), strict=True):
        (package / f"{name}.py").write_text(block, encoding="utf-8")
    (package / "__init__.py").write_text("from . import criterion, model, task\n")
    uses = {
        "model": ["--task", "masked_lm", "--criterion", "masked_lm", "--arch", "bag"],
        "criterion": ["--task", "masked_lm", "--criterion", "small_masked_lm", *SMALL_ROBERTA],
        "task": ["--task", "plain_text", "--criterion", "masked_lm", *SMALL_ROBERTA],
    }
    runs = {
        f"{part}-{workers}": [*use, "--num-workers", workers]
        for part, use in uses.items()
        for workers in ("0", "1")
    }
    user_dir = ["--user-dir", str(package)]
    run_all(
        [[str(data), *user_dir, *use, *COMMON, "--save-dir", name] for name, use in runs.items()],
        tmp_path,
    )
    for name in runs:
        side = json.loads((tmp_path / name / "checkpoint_last.pt.json").read_text(encoding="utf-8"))
        assert side["num_updates"] == 2, name


def test_the_template_trains_and_its_model_loads_again(tmp_path: Path, data: Path) -> None:
    user_dir = ["--user-dir", str(ROOT / "examples" / "plugin")]
    chosen = "--task plain_text --criterion smoothed_masked_lm --smoothing 0.2 --arch bag --width 8"
    train = [str(data), *user_dir, *chosen.split(), *COMMON, "--num-workers", "1"]
    checkpoint = str(tmp_path / "run" / "checkpoint_best.pt")
    run_all(
        [
            [*train, "--save-dir", "run"],
            [str(data), *user_dir, "--path", checkpoint, "--log-format", "none"],
        ],
        tmp_path,
    )
    first, *_ = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["loss"] > 0


def test_the_template_s_head_dataset_and_schedule_train(tmp_path: Path, data: Path) -> None:
    user_dir = ["--user-dir", str(ROOT / "examples" / "plugin")]
    chosen = (
        "--task counting --criterion masked_lm --arch roberta_scaled --lr-scheduler saw".split()
    )
    train = [str(data), *user_dir, *chosen, "--teeth", "4", *SMALL_ROBERTA[2:], *COMMON]
    train += ["--first-scale", "0.5"]
    more = ["--log-interval", "1", "--max-update", "40", "--save-dir", "run"]
    checkpoint = str(tmp_path / "run" / "checkpoint_best.pt")
    check = [str(data), *user_dir, "--path", checkpoint, "--log-format", "none"]
    run_all([[*train, *more], check], tmp_path)
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    weights = safe_load(tmp_path / "run" / "checkpoint_best.pt")["model"]
    assert 0 < abs(float(weights["encoder.lm_head.scale"]) - 0.5) < 0.4
    rows = [row for row in map(json.loads, text.splitlines()) if row["tag"] == "train_inner"]
    assert [float(row["lr"]) for row in rows[:5]] == [0.0075, 0.005, 0.0025, 0.01, 0.0075]
    losses = [float(row["loss"]) for row in rows]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_template_s_schedule_states_its_range() -> None:
    words = f"data-bin --user-dir {ROOT / 'examples' / 'plugin'} --task masked_lm --arch bag"
    command = [sys.executable, "-m", "fairseq_cli.train", *words.split(), "--lr-scheduler", "saw"]
    done = subprocess.run([*command, "--teeth", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--teeth (lr_scheduler.teeth) must be at least 1, not 0" in done.stderr
