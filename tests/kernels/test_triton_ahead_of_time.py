"""Every kernel compiled for GPUs that need not be there: what the machine code says of its speed.

The interpreter accepts programs that the compiler refuses, so interpreted tests are not enough.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the kernels are interpreted in this process", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language")

from triton.compiler import CompiledKernel  # noqa: E402

from sdslab.kernels import triton_bodies, triton_kernels, triton_sr_condition  # noqa: E402
from tests.kernels.ahead_of_time import (  # noqa: E402
    ARCHITECTURES,
    compile_kernel,
    ptxas_report,
    spilled_bytes,
)
from tests.kernels.ttir_addresses import accesses  # noqa: E402

# What a block may have without asking for more, on every GPU.
SHARED_MEMORY = 48 * 1024
VECTOR_BYTES = 16
BLOCK = 1024
BYTES = {"fp64": 8, "i64": 8, "fp32": 4, "i32": 4, "fp16": 2, "bf16": 2}
SIZES = {
    "n", "output_stride", "target_stride", "next_prediction", "height", "width", "size",
    "low_size",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("triton_cache")


@dataclass(frozen=True)
class Case:
    """A kernel, specialised.

    Attributes:
        kernel: Its name.
        constants: Values of its compile-time arguments; None leaves a pointer out.
        elements: Element types of the pointers that differ from `ELEMENTS`.
        loads: Pointers through which a program loads a whole tile of BLOCK elements.
        stores: Pointers through which it stores one.
        wide: Integers of 64 bits.
        warps: Of a program.
    """

    kernel: str
    constants: Mapping[str, Any]
    elements: Mapping[str, str] = field(default_factory=dict)
    loads: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    warps: int = 4

    def element(self, pointer: str) -> str:
        return self.elements.get(pointer, ELEMENTS.get(pointer, "fp32"))

    def vectors(self, pointers: tuple[str, ...]) -> int:
        """How many 16-byte accesses each thread needs for the tiles of `pointers`."""
        block = self.constants.get("BLOCK", BLOCK) * self.constants.get("TILES", 1)
        total = sum(block * BYTES[self.element(pointer)] for pointer in pointers)
        return total // (32 * self.warps * VECTOR_BYTES)


ELEMENTS = {
    "sample_ptr": "i64",
    "bits_ptr": "i64",
    "nonfinite_ptr": "i64",
    "alpha_bar_ptr": "fp64",
    "weight_ptr": "fp64",
    "coefficients_ptr": "fp64",
}
FP32 = {"DTYPE": tl.float32, "BLOCK": BLOCK}
# 3 × 64² elements are one program's.
SMALL = FP32 | {"BLOCK": triton_bodies.SMALL_BLOCK, "TILES": 3}
FP64 = {"DTYPE": tl.float64, "BLOCK": BLOCK}
BY_KEY = {"noise_ptr": None}
BY_TENSOR = {"sample_ptr": None}
ALL_FP64: dict[str, str] = dict.fromkeys(
    ("x_ptr", "x_t_ptr", "noise_ptr", "target_ptr", "gradient_ptr", "loss_ptr", "model_output_ptr",
     "render_ptr", "condition_ptr"),
    "fp64",
)  # fmt: skip


def sds(
    prediction_type: str, form: str, clamp: float | None, guided: bool = False, combined: int = 0
) -> dict[str, Any]:
    """Constants of the gradient of one, of a guided or of a number of combined predictions."""
    return {
        "PREDICTION_TYPE": prediction_type, "FORM": form, "CLAMP": clamp, "TILES": 1,
        "PREDICTIONS": combined or 1 + guided,
    } | ({} if combined else {"coefficients_ptr": None})  # fmt: skip


def sr(mode: str, **constants: Any) -> dict[str, Any]:
    rows, columns = triton_sr_condition.TILES[mode]
    return {
        "MODE": mode,
        "WHOLE_BLOCKS": True,
        "ROWS": rows,
        "COLUMNS": columns,
        "LOW": triton_sr_condition.small_pixels(max(rows, columns), 256, 64),
        "CHUNK": triton_sr_condition.CHUNK,
        "DTYPE": tl.float32,
        **constants,
    }


CASES = {
    "bits": Case("bits_kernel", {"BLOCK": BLOCK}, stores=("bits_ptr",)),
    "normal": Case("normal_kernel", FP32, stores=("normal_ptr",)),
    "perturb by key": Case("perturb_kernel", FP32 | BY_KEY, {}, ("x_ptr",), ("x_t_ptr",)),
    "perturb by tensor": Case(
        "perturb_kernel", FP32 | BY_TENSOR, {}, ("x_ptr", "noise_ptr"), ("x_t_ptr",)
    ),
    "perturb fp16 by key": Case(
        "perturb_kernel",
        FP32 | BY_KEY,
        {"x_ptr": "fp16", "x_t_ptr": "fp16"},
        ("x_ptr",),
        ("x_t_ptr",),
    ),
    "perturb fp64 by tensor": Case(
        "perturb_kernel", FP64 | BY_TENSOR, ALL_FP64, ("x_ptr", "noise_ptr"), ("x_t_ptr",)
    ),
    # Triton takes an argument of 1, the size of a single pixel, for a constant.
    "perturb one pixel": Case("perturb_kernel", FP32 | BY_TENSOR | {"n": 1}),
    "perturb huge samples": Case(
        "perturb_kernel", FP32 | BY_KEY, {}, ("x_ptr",), ("x_t_ptr",), wide=("n",)
    ),
    "sds guided by key": Case(
        "sds_gradient_kernel",
        FP32 | BY_KEY | sds("epsilon", "x0", 1.0, True),
        {},
        ("x_ptr", "model_output_ptr", "model_output_ptr"),
        ("gradient_ptr",),
    ),
    "sds of one program": Case(
        "sds_gradient_kernel",
        BY_KEY | sds("epsilon", "x0", 1.0, True) | SMALL,
        {"model_output_ptr": "fp16"},
        ("x_ptr", "model_output_ptr", "model_output_ptr"),
        ("gradient_ptr",),
        warps=16,
    ),
    "degenerate of one program": Case(
        "degenerate_sds_gradient_kernel",
        SMALL | {"FORM": "x0", "CLAMP": None},
        {},
        ("x_ptr", "target_ptr"),
        ("gradient_ptr",),
        warps=16,
    ),
    "sds guided fp16 by tensor": Case(
        "sds_gradient_kernel",
        FP32 | BY_TENSOR | sds("v", "epsilon", None, True),
        {"model_output_ptr": "fp16"},
        ("x_ptr", "noise_ptr", "model_output_ptr", "model_output_ptr"),
        ("gradient_ptr",),
    ),
    "sds of three predictions by key": Case(
        "sds_gradient_kernel",
        FP32 | BY_KEY | sds("epsilon", "x0", None, combined=3),
        {},
        ("x_ptr", "model_output_ptr", "model_output_ptr", "model_output_ptr"),
        ("gradient_ptr",),
    ),
    "sds fp64 bf16 by key": Case(
        "sds_gradient_kernel",
        FP64 | BY_KEY | sds("epsilon", "epsilon", 1.0, False),
        ALL_FP64 | {"model_output_ptr": "bf16"},
        ("x_ptr", "model_output_ptr"),
        ("gradient_ptr",),
    ),
    "degenerate": Case(
        "degenerate_sds_gradient_kernel",
        FP32 | {"FORM": "x0", "CLAMP": None, "TILES": 1},
        {},
        ("x_ptr", "target_ptr"),
        ("gradient_ptr",),
    ),
    "degenerate bf16": Case(
        "degenerate_sds_gradient_kernel",
        FP32 | {"FORM": "epsilon", "CLAMP": 1.0, "TILES": 1},
        {"x_ptr": "bf16", "target_ptr": "bf16"},
        ("x_ptr", "target_ptr"),
        ("gradient_ptr",),
    ),
    # Its loads gather: every eighth pixel.
    "sr castex": Case(
        "sr_condition_kernel", sr("castex", noise_ptr=None), {}, (), ("condition_ptr",)
    ),
    "sr castex odd": Case(
        "sr_condition_kernel",
        sr("castex", WHOLE_BLOCKS=False, noise_ptr=None),
        {},
        (),
        ("condition_ptr",),
    ),
    # Four taps are unrolled, and a loop for the rest follows.
    "sr pipeline": Case(
        "sr_condition_kernel",
        sr("pipeline", noise_ptr=None),
        {},
        5 * ("render_ptr",),
        ("condition_ptr",),
    ),
    "sr pipeline by tensor": Case(
        "sr_condition_kernel",
        sr("pipeline", sample_ptr=None),
        {},
        (*5 * ("render_ptr",), "noise_ptr"),
        ("condition_ptr",),
    ),
    "sr pipeline clean fp64": Case(
        "sr_condition_kernel",
        sr("pipeline", DTYPE=tl.float64, noise_ptr=None, sample_ptr=None, alpha_bar_ptr=None),
        ALL_FP64,
        ("render_ptr",),
        ("condition_ptr",),
    ),
}  # fmt: skip


def compile_case(case: Case, architecture: int, wide: Collection[str] = ()) -> CompiledKernel:
    """Compiles for a GPU as the launcher would; integers named in `wide` have 64 bits."""
    module = triton_sr_condition if case.kernel == "sr_condition_kernel" else triton_kernels
    return compile_kernel(
        getattr(module, case.kernel),
        case.constants,
        ELEMENTS | dict(case.elements),
        architecture,
        aligned=SIZES,
        wide={*wide, *case.wide, "next_prediction"},
        warps=case.warps,
        fp_fusion=False,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", CASES)
def test_accesses_are_wide_and_nothing_spills(name: str, architecture: int, tmp_path: Path):
    case = CASES[name]
    compiled = compile_case(case, architecture)
    ptx = compiled.asm["ptx"]
    for access, pointers in (("ld", case.loads), ("st", case.stores)):
        wide = re.findall(rf"\b{access}\.global\.(?:v4\.b32|v2\.b64)\b", ptx)
        assert len(wide) == case.vectors(pointers), f"16-byte {access}: {len(wide)}"
    assert compiled.metadata.shared <= SHARED_MEMORY
    report = ptxas_report(ptx, architecture, tmp_path)
    assert spilled_bytes(report) == 0, report
    if case.constants.get("DTYPE") != tl.float64:  # the library's sin and cos need one there
        assert re.findall(r"(\d+) bytes stack frame", report) == ["0"], report


@pytest.mark.parametrize("n", [2**31 - 16, 2**33 + 16], ids=["n of 32 bits", "n of 64 bits"])
@pytest.mark.parametrize(
    "name",
    ["bits", "normal", "perturb by key", "perturb by tensor", "sds guided by key", "degenerate"],
)
def test_offsets_beyond_32_bits_do_not_wrap(name: str, n: int):
    """The last program of three samples, whose elements are beyond 2^31."""
    case = CASES[name]
    programs = -(-n // BLOCK)
    sizes = {"n": n, "output_stride": 2 * n, "target_stride": n, "next_prediction": 6 * n}
    compiled = compile_case(case, 90, [name for name, size in sizes.items() if size >= 2**31])
    found = accesses(compiled.asm["ttir"], 3 * programs - 1, sizes)
    lanes = (programs - 1) * BLOCK + np.arange(BLOCK, dtype=np.int64)
    for pointer in {*case.loads, *case.stores}:
        expected = [2 * n + lanes]
        if pointer == "model_output_ptr":
            expected = [4 * n + lanes, 6 * n + 4 * n + lanes]
        np.testing.assert_equal(found[pointer], expected, err_msg=pointer)
    for pointer in {"sample_ptr", "alpha_bar_ptr", "weight_ptr"} & found.keys():
        assert np.all(np.stack(found[pointer]) == 2), pointer
    for pointer in {"loss_ptr", "nonfinite_ptr"} & found.keys():
        assert np.all(np.stack(found[pointer]) == 3 * programs - 1), pointer


def test_large_pictures_are_addressed_in_64_bits():
    side, (rows, columns) = 2**14, triton_sr_condition.TILES["castex"]
    compiled = compile_case(CASES["sr castex"], 90)
    tiles = (side // rows) * (side // columns)
    sizes = {
        "channels": 3, "height": side, "width": side, "size": side, "low_size": side // 4
    }  # fmt: skip
    found = accesses(compiled.asm["ttir"], 30 * tiles - 1, sizes)
    y, x = (np.arange(side - count, side, dtype=np.int64) for count in (rows, columns))
    offsets = 29 * side**2 + y[:, None] * side + x
    np.testing.assert_equal(found["condition_ptr"], [offsets])
    np.testing.assert_equal(
        found["render_ptr"], [29 * side**2 + (y // 4 * 4)[:, None] * side + x // 4 * 4]
    )
    assert found["alpha_bar_ptr"][0] == 9
