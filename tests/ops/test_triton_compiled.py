"""The kernels compile for GPUs that are not here; ptxas tells what they will use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="needs the extra 'triton'")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

POINTERS = "scale bias target lse loss total best loss_grad lse_grad total_grad".split()
TYPES = {"target": "*i64", "best": "*i64"}
# what the primitive asks for: which pointers there are, which constants, how many classes
VARIANTS = {
    "loss only": ("target lse loss", {"GRADIENT": False}),
    "loss and gradient": ("bias target lse loss", {"GRADIENT": True}),
    "everything": ("scale bias target lse loss total best", {"GRADIENT": True}),
    "recomputed": ("bias target lse loss_grad", {"GRADIENT": True, "KNOWN_LSE": True}),
    "recomputed, all": (
        "scale bias target lse loss_grad lse_grad total_grad",
        {"GRADIENT": True, "KNOWN_LSE": True},
    ),
}


def aligned(signature: dict[str, str]) -> dict[tuple[int, ...], list[list[object]]]:
    """Return what a launch finds out: tensors and rows begin at multiples of 16 numbers."""
    return {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.endswith("stride")
    }


def source(there: str, constants: dict[str, bool], element: str, block: int) -> ASTSource:
    from fairseq.ops.triton.rows import row_kernel

    signature = {"logits": f"*{element}"}
    constexprs: dict[str, object] = {"KNOWN_LSE": False, **constants, "BLOCK": block}
    for name in POINTERS:
        if name in there.split():
            signature[name] = TYPES.get(name, "*fp32")
        else:
            signature[name] = "constexpr"
            constexprs[name] = None
    signature |= {"classes": "i32", "stride": "i32", "ignore_index": "i32"}
    signature |= dict.fromkeys(("GRADIENT", "KNOWN_LSE", "BLOCK"), "constexpr")
    return ASTSource(row_kernel, signature, constexprs, aligned(signature))


def figures(ptx: str, folder: Path) -> dict[str, int]:
    """Return registers, bytes of spills and of shared memory that ptxas reports."""
    (folder / "kernel.ptx").write_text(ptx)
    arch = re.findall(r"\.target (sm_\w+)", ptx)[0]
    # one assembler for older, one for newer versions of the intermediate language
    for ptxas in sorted(Path(triton.__file__).parent.rglob("backends/nvidia/bin/ptxas*")):
        command = [ptxas, "-v", f"-arch={arch}", "kernel.ptx", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr

    def number(pattern: str) -> int:
        found = re.findall(pattern, done.stderr)
        return int(found[-1]) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
        "shared": number(r"(\d+) bytes smem"),
    }


def pairs(gradient: bool, element: str, block: int) -> ASTSource:
    from fairseq.ops.triton.distillation_rows import distillation_kernel

    signature = dict.fromkeys(("student", "teacher"), f"*{element}")
    signature |= dict.fromkeys(("student_bias", "teacher_bias"), "*fp32")
    signature |= {"target": "*i64", "divergence": "*fp32", "likelihood": "*fp32"}
    names = ("classes", "student_stride", "teacher_stride", "ignore_index")
    signature |= dict.fromkeys(names, "i32")
    signature |= dict.fromkeys(("temperature", "alpha_kl", "alpha_lm"), "fp32")
    signature |= dict.fromkeys(("GRADIENT", "BLOCK"), "constexpr")
    constexprs = {"GRADIENT": gradient, "BLOCK": block}
    return ASTSource(distillation_kernel, signature, constexprs, aligned(signature))


on_the_compiler = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is on"
)


def check(what: str, made: ASTSource, capability: int, warps: int, folder: Path) -> None:
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(made, target=target, options={"num_warps": warps})
    assert compiled.asm["cubin"]
    used = figures(compiled.asm["ptx"], folder)
    used["shared"] = max(used["shared"], compiled.metadata.shared)
    print(f"sm_{capability} {what}, {warps} warps: {used}")
    assert used["registers"] > 0
    assert used["spill_stores"] == used["spill_loads"] == 0
    assert used["registers"] * 32 * warps <= 65536  # a program fits a multiprocessor


@pytest.mark.matrix
@on_the_compiler
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90])
def test_row_kernel_compiles_without_spills(
    capability: int, element: str, variant: str, tmp_path: Path
) -> None:
    from fairseq.ops.triton.rows import launch_shape

    for classes in (50265, *[1000] * (variant == "everything")):
        block, warps = launch_shape(classes)
        made = source(*VARIANTS[variant], element, block)
        check(f"{element} V={classes}, {variant}", made, capability, warps, tmp_path)


@pytest.mark.matrix
@on_the_compiler
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("element", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90])
def test_kernel_of_pairs_compiles_without_spills(
    capability: int, element: str, gradient: bool, tmp_path: Path
) -> None:
    from fairseq.ops.triton.rows import launch_shape

    block, warps = launch_shape(50265)
    made = pairs(gradient, element, block)
    check(f"{element} pairs, gradient {gradient}", made, capability, warps, tmp_path)


if __name__ == "__main__":  # print the figures: python tests/ops/test_triton_compiled.py
    sys.exit(pytest.main([__file__, "-s", "-q", "-m", "matrix"]))
