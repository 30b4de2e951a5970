"""fairseq-hessian: how flat the loss of a checkpoint is."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fairseq.catalog import HESSIAN_LABELS, HESSIAN_MATRICES, HESSIAN_METHODS, HESSIAN_VECTORS
from fairseq_cli.entry import command, command_parser
from fairseq_cli.flags import add_user_dir

EXAMPLES = """examples:
  fairseq-hessian runs/mine/checkpoint_best.pt data-bin --probes 1000 --rel-se .02
      trace of the Hessian by random signs (Hutchinson), until its error is 2 %
  fairseq-hessian model.pt data-bin --method fisher
      mean squared gradient of labels drawn from the model
  fairseq-hessian model.pt data-bin --method ggn            Gauss-Newton: works at any vocabulary
  fairseq-hessian model.pt data-bin --method lanczos --top 10       eigenvalues and spectrum
  fairseq-hessian model.pt data-bin --residual      also Tr G, and Tr H - Tr G: zero in saturation

A trace depends on the parameters counted, on how they are scaled, on the labels and on what the
loss is averaged over: compare only traces that are printed with the same convention.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_parser(
        "fairseq-hessian",
        "Measure the curvature of a checkpoint's loss: trace, blocks, eigenvalues.",
        EXAMPLES,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="a checkpoint of any task")
    add("data", metavar="DATA", help="folder of binarized data")
    add("--method", choices=HESSIAN_METHODS, help="how; see below (default: hutchinson)")
    add(
        "--matrix",
        choices=HESSIAN_MATRICES,
        help="what the method is applied to (default: hessian)",
    )
    add(
        "--labels",
        choices=HESSIAN_LABELS,
        help="labels of the data, or drawn from the model (default: data; fisher: model)",
    )
    add(
        "--vector",
        choices=HESSIAN_VECTORS,
        help="random vectors: signs or normal numbers (default: rademacher)",
    )
    add("--params", metavar="all|paper|REGEX", help="parameters that count; paper: without pooler "
        "and bias of the vocabulary (default: all)")  # fmt: skip
    add(
        "--probes",
        type=int,
        metavar="M",
        help="hutchinson: probes; fisher, ggn: batches; hutch++: products; lanczos: starts "
        "(default: 100; hutch++ 99, lanczos 4)",
    )
    add("--rel-se", type=float, metavar="E", help="stop at a standard error of this share of the "
        "trace")  # fmt: skip
    add("--batch-size", type=int, metavar="N", help="samples in a batch (default: 16)")
    add("--sentences", type=int, metavar="N", help="the same N samples for every probe, instead of "
        "a new batch for each (default of exact, hutch++ and lanczos: 16 batches)")  # fmt: skip
    add("--subset", metavar="NAME", help="subset of the data (default: valid)")
    add("--steps", type=int, metavar="N", help="steps of Lanczos from each start (default: 40)")
    add("--top", type=int, metavar="K", help="eigenvalues to print, from either end (default: 5)")
    add("--dtype", choices=("fp32", "fp64"), help="type of all numbers (default: fp32)")
    add(
        "--residual",
        action="store_true",
        help="also Tr G of the Gauss-Newton matrix, and Tr H - Tr G",
    )
    add("--seed", type=int, metavar="N", help="seed of batches, probes and labels (default: 1)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (default: auto)")
    add("--model-overrides", metavar="DICT", help="settings that replace the checkpoint's")
    add_user_dir(parser)
    add("--log-format", help="progress: simple, json, rich or none (default: rich)")
    add("--out", metavar="FILE", help="also write the results there, as JSON")
    add("--json", action="store_true", help="print the results as one JSON object")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    argv = list(sys.argv[1:] if argv is None else argv)
    stated = vars(make_parser().parse_args(argv))
    from fairseq.config.plugins import import_from_argv
    from fairseq.evaluation.hessian.measure import Settings, measure
    from fairseq.files.io import atomic_write
    from fairseq.logging.progress_bar import setup_logging

    setup_logging(stream="stderr")
    import_from_argv(argv)
    as_json, out = stated.pop("json", False), stated.pop("out", None)
    log_format = stated.pop("log_format", None)
    if out is not None:
        _check_writable(out)
    flat = {"path": stated.pop("checkpoint"), "data": stated.pop("data")}
    for name in ("device", "model_overrides"):
        if name in stated:
            flat[name] = stated.pop(name)
    stated.pop("user_dir", None)
    double = stated.pop("dtype", "fp32") == "fp64"
    result = measure(flat, Settings(double=double, **stated), log_format)
    # first, so that a disk that is full by now takes nothing
    print(json.dumps(result) if as_json else describe(result), flush=True)
    if out is not None:
        with atomic_write(out, "w") as file:
            json.dump(result, file)
    if result.get("interrupted"):
        print("interrupted: these are the estimates so far", file=sys.stderr)
        return 130
    return 0


def _check_writable(out: str) -> None:
    """Refuse a file that cannot be written before hours go into what it is for."""
    from fairseq.errors import MissingFileError

    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        raise MissingFileError(f"--out {out}: there is no such folder; make it first")
    if os.path.isdir(out):
        raise MissingFileError(f"--out {out} is a folder; name a file")
    if not os.access(folder, os.W_OK):
        raise MissingFileError(f"--out {out}: nothing can be written in {folder}; choose another")


def describe(result: Mapping[str, Any]) -> str:
    """Return the results as lines of text, what they are the trace of first."""
    lines = [result["convention"], _figure("trace", result["trace"], result["se"])]
    if "interval" in result:
        low, high = result["interval"]
        lines[-1] += f"  (95 %: {low:.6g} to {high:.6g}, {result['probes']} estimates)"
    for name in ("trace_ggn", "residual"):
        if name in result:
            lines.append(_figure(name, result[name], result[f"{name}_se"]))
    sizes = result["block_sizes"]
    for name, block in result.get("blocks", {}).items():
        lines.append(_figure(f"  {name}", block["trace"], block["se"]))
        lines[-1] += f"  ({sizes[name]:,.0f} parameters)"
    for side, values in result.get("eigenvalues", {}).items():
        shown = ", ".join(f"{value['value']:.6g} +- {value['error']:.1g}" for value in values)
        lines.append(f"{side} eigenvalues: {shown}")
    lines.append(f"loss {result['loss']:.6g}; {result['seconds']} seconds")
    return "\n".join(lines)


def _figure(name: str, value: float, error: float) -> str:
    return f"{name:<12} {value:.6g} +- {error:.2g}"


cli_main = command(main)

if __name__ == "__main__":
    cli_main()
