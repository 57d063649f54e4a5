"""The renderer's kernels compiled for GPUs that need not be there: what the machine code says."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.interpreted import INTERPRETED

if INTERPRETED:
    pytest.skip("the kernels are interpreted in this process", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language")

from triton.compiler import CompiledKernel  # noqa: E402

from sdslab.rendering import triton_texture, triton_visibility  # noqa: E402
from tests.kernels.ahead_of_time import (  # noqa: E402
    ARCHITECTURES,
    compile_kernel,
    ptxas_report,
    spilled_bytes,
)

ELEMENTS = {
    "faces_ptr": "i32", "nearest_ptr": "i64", "large_ptr": "i64", "large_count_ptr": "i32",
    "starts_ptr": "i64",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched; its 16-byte accesses, and its most registers."""

    kernel: Any
    launch: dict[str, Any]
    loads: int = 0
    stores: int = 0
    registers: int = 128
    constants: dict[str, Any] = field(default_factory=dict)


EIGHT = {"C": 8, "PADDED": 8}
FP32 = {**EIGHT, "DTYPE": tl.float32}
HALVES = {**EIGHT, "DOWN": 2, "ACROSS": 2}
CASES = {
    # A corner of each face is 16 bytes.
    "small faces": Case(triton_visibility.small_faces_kernel, triton_visibility.BLOCK, loads=3),
    "large faces": Case(triton_visibility.large_faces_kernel, triton_visibility.TILE),
    # The derivatives, and two for each of eight texels of 32 bytes.
    "look-up": Case(triton_texture.look_up_kernel, triton_texture.SAMPLES, 17, 2, constants=FP32),
    # The derivatives, and the gradient.
    "scatter": Case(triton_texture.scatter_kernel, triton_texture.SAMPLES, 3, constants=FP32),
    "halve": Case(triton_texture.halve_kernel, triton_texture.TEXELS, 8, 2, constants=HALVES),
    "add doubled": Case(
        triton_texture.add_doubled_kernel, triton_texture.TEXELS, 4, 2, constants=HALVES
    ),
}


@pytest.fixture(autouse=True, scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory):
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton_cache"))
        yield


def compiled_for(case: Case, architecture: int | str) -> CompiledKernel:
    launch = dict(case.launch)
    warps = launch.pop("num_warps")
    return compile_kernel(
        case.kernel, launch | case.constants, ELEMENTS, architecture, aligned=(), warps=warps,
        fp_fusion="faces_ptr" not in case.kernel.arg_names,
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", CASES)
def test_accesses_are_wide_and_nothing_spills(name: str, architecture: int, tmp_path: Path):
    case = CASES[name]
    compiled = compiled_for(case, architecture)
    ptx = compiled.asm["ptx"]
    for access, expected in (("ld", case.loads), ("st", case.stores)):
        wide = re.findall(rf"\b{access}\.global\.(?:v4\.b32|v2\.b64)\b", ptx)
        assert len(wide) == expected, f"16-byte {access}: {len(wide)}"
    report = ptxas_report(ptx, architecture, tmp_path)
    assert spilled_bytes(report) == 0, report
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert int(registers) <= case.registers, report


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", ["small faces", "large faces"])
def test_visibility_rounds_as_the_cpus(name: str, architecture: int):
    """Nothing fused, division to nearest, no constant of fewer bits; one 64-bit minimum a pixel."""
    compiled = compiled_for(CASES[name], architecture)
    ptx, corners = compiled.asm["ptx"], 12 if name == "large faces" else 3
    assert not re.findall(r"\bfma\.", ptx)
    assert set(re.findall(r"\bdiv\.\w+\.f\d+|\brcp\.\S+", ptx)) == {"div.rn.f64"}
    assert compiled.asm["ttir"].count("arith.extf") == corners
    assert len(re.findall(r"tt\.atomic_rmw min", compiled.asm["ttir"])) == 1
    assert "relaxed.min.s64" in ptx


@pytest.mark.parametrize("name", CASES)
def test_amds_compiler_spills_nothing(name: str):
    assembly = compiled_for(CASES[name], "gfx942").asm["amdgcn"]
    spills = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", assembly)
    assert spills == ["0", "0"]
