"""Compiles kernels for GPUs that need not be there."""

import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, CompiledKernel, compile

ARCHITECTURES = (80, 89, 90)


def compile_kernel(
    kernel: Any,
    constants: Mapping[str, Any],
    elements: Mapping[str, str],
    architecture: int | str,
    *,
    aligned: Collection[str],
    wide: Collection[str] = (),
    warps: int = 4,
    fp_fusion: bool,
) -> CompiledKernel:
    """Compiles as the launcher would.

    Args:
        kernel: What `triton.jit` made.
        constants: Values of compile-time arguments; None leaves a pointer out.
        elements: Element types of the pointers, float32 where there is none.
        architecture: 80 for sm_80, or the name of one of AMD's, such as gfx942.
        aligned: Integers that are multiples of 16; all pointers are.
        wide: Integers of 64 bits.
        warps: Of a program.
        fp_fusion: What the launcher says of fused multiplications and additions.
    """
    signature, attributes = {}, {}
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        if name.endswith("_ptr"):
            signature[name] = f"*{elements.get(name, 'fp32')}"
        else:
            default = "i64" if name in wide else "i32"
            signature[name] = parameter.annotation_type or default
        # As the launcher finds them: torch aligns its memory, and usual sizes are multiples of 16.
        if name.endswith("_ptr") or name in aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return compile(
        ASTSource(kernel, signature, dict(constants), attributes),
        target=GPUTarget("hip", architecture, 64)
        if isinstance(architecture, str)
        else GPUTarget("cuda", architecture, 32),
        options={"enable_fp_fusion": fp_fusion, "num_warps": warps},
    )


def ptxas_report(ptx: str, architecture: int, folder: Path) -> str:
    """What the assembler says of registers and spills."""
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    assert target
    command = [get_ptxas(architecture).path, "-v", f"--gpu-name={target[1]}", str(source)]
    run = subprocess.run(
        [*command, "-o", str(folder / "kernel.cubin")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stderr


def spilled_bytes(report: str) -> int:
    """Stored and loaded again because registers were too few."""
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    assert spills, report
    return sum(map(int, spills))
