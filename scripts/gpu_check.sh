#!/bin/sh
# Everything about speed that only a GPU can show, inside nine minutes on any CUDA machine:
# parity of all backends, equal runs, steps without a wait, then benchmarks with MFU, as JSON.
#
# Usage: scripts/gpu_check.sh [OUTPUT.json]        PYTHON= chooses the interpreter.
# Exit status: 0 if every check passed and the figures were written, 1 otherwise, 2 without a GPU.
# It installs nothing; backends whose packages are missing are named and skipped.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
OUTPUT=${1:-benchmarks/results/gpu.json}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu_check: $PYTHON has no torch that sees a CUDA GPU" >&2
    exit 2
fi
status=0
# the kernels' tests need pytest and nothing else; 5 of the 9 minutes at most
timeout 300 "$PYTHON" -m pytest -o addopts="" -q -rs tests/ops/test_on_gpu.py \
    tests/training/test_step_on_gpu.py || status=1
timeout 210 "$PYTHON" benchmarks/gpu.py --seconds 180 --output "$OUTPUT" || status=1
exit $status
