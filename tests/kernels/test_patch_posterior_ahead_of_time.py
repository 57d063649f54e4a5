"""`patch_posterior` compiled for GPUs that need not be there."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the kernels are interpreted in this process", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.compiler import CompiledKernel  # noqa: E402

from sdslab.kernels import triton_patch_posterior as module  # noqa: E402
from sdslab.kernels import triton_posterior_kernels  # noqa: E402
from tests.kernels.ahead_of_time import (  # noqa: E402
    ARCHITECTURES,
    compile_kernel,
    ptxas_report,
    spilled_bytes,
)
from tests.kernels.ttir_addresses import accesses  # noqa: E402

pytestmark = pytest.mark.usefixtures("triton_cache")

# What every GPU from sm_80 on gives a block that asks.
SHARED_MEMORY = 99 * 1024
THREADS, VECTOR_BYTES = 128, 16
ELEMENTS = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
OPTIONAL = {
    "values": ("values_ptr",),
    "bias": ("bias_ptr",),
    "bins": ("query_bin_ptr", "key_bin_ptr"),
    "context": ("context_ptr", "key_context_ptr"),
    "shares": ("peak_ptr", "total_ptr"),
}
INTEGERS = dict.fromkeys(("query_bin_ptr", "key_bin_ptr"), "i64") | {"alpha_bar_ptr": "fp64"}
FLOATS = (
    "y_ptr", "keys_ptr", "values_ptr", "bias_ptr", "context_ptr", "key_context_ptr", "mean_ptr",
    "peak_ptr", "total_ptr",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The kernel, specialised.

    Attributes:
        given: Which optional arguments there are.
        dtype: Of all inputs.
        sizes: r, d and m, columns of keys, values and context.
    """

    given: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    sizes: tuple[int, int, int] = (32, 32, 16)

    @property
    def aligned(self) -> bool:
        """Whether rows begin at multiples of 16 bytes."""
        return all(size % 16 == 0 for size in self.sizes)

    def constants(self, architecture: int) -> dict[str, Any]:
        absent: dict[str, Any] = {
            pointer: None
            for name, pointers in OPTIONAL.items()
            if name not in self.given
            for pointer in pointers
        }
        r, d, m = self.sizes
        chosen = module.constants_of(
            torch.promote_types(self.dtype, torch.float32),
            r,
            d,
            m if "context" in self.given else 0,
            bins="bins" in self.given,
            capability=architecture // 10,
        )
        products = module.precision_of(self.dtype)
        return absent | chosen | {"PRODUCTS": products}

    def compile(self, architecture: int) -> CompiledKernel:
        return compile_kernel(
            triton_posterior_kernels.patch_posterior_kernel,
            self.constants(architecture),
            INTEGERS | dict.fromkeys(FLOATS, ELEMENTS[self.dtype]),
            architecture,
            aligned={"n", "k", "share"} | ({"r", "d", "m"} if self.aligned else set()),
            fp_fusion=True,
        )


EVERYTHING = tuple(OPTIONAL)
CASES = {
    "plain": Case(),
    "31 coordinates": Case(("shares",), sizes=(31, 31, 0)),
    "bf16": Case(dtype=torch.bfloat16),
    "context": Case(("context", "shares")),
    "everything": Case(EVERYTHING),
    "everything, wide": Case(EVERYTHING, sizes=(144, 144, 48)),
    "everything fp64": Case(EVERYTHING, torch.float64),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("name", CASES)
def test_accesses_are_wide_and_nothing_spills(name: str, architecture: int, tmp_path: Path):
    case = CASES[name]
    compiled = case.compile(architecture)
    ptx = compiled.asm["ptx"]
    report = ptxas_report(ptx, architecture, tmp_path)
    assert spilled_bytes(report) == 0, report
    assert compiled.metadata.shared <= SHARED_MEMORY
    if case.aligned:
        assert not re.findall(r"\bld\.global\.b(?:16|32)\b", ptx)
        assert not re.findall(r"cp\.async\.\S+ \S+ \S+ \S+ \S+ \S+ \S+ 0x4,", ptx)
        constants = case.constants(architecture)
        stored = constants["M"] * constants["D"] * case.dtype.itemsize
        wide = re.findall(r"\bst\.global\.(?:v4\.b32|v2\.b64)\b", ptx)
        assert len(wide) == stored // (THREADS * VECTOR_BYTES)


def test_shares_are_added_in_wide_accesses(tmp_path: Path):
    constants = CASES["context"].constants(90)
    compiled = compile_kernel(
        triton_posterior_kernels.sum_of_shares_kernel,
        {name: constants[name] for name in ("M", "D", "DTYPE")},
        {},
        90,
        aligned={"n", "d"},
        fp_fusion=True,
    )
    ptx = compiled.asm["ptx"]
    assert spilled_bytes(ptxas_report(ptx, 90, tmp_path)) == 0
    vectors = constants["M"] * constants["D"] * 4 // (THREADS * VECTOR_BYTES)
    for access in ("ld", "st"):
        assert len(re.findall(rf"\b{access}\.global\.v4\.b32\b", ptx)) == vectors, access


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids="sm_{}".format)
def test_products_are_on_the_tensor_cores(architecture: int):
    ptx = CASES["plain"].compile(architecture).asm["ptx"]
    instruction = "wgmma.mma_async" if architecture == 90 else "mma.sync"
    kinds = set(re.findall(rf"{re.escape(instruction)}\S*\.(f32\.\w+\.\w+)\b", ptx))
    assert kinds == {"f32.bf16.bf16"}


def test_offsets_beyond_32_bits_do_not_wrap():
    """The last tile of queries of the second share; the keys' offsets are computed alike."""
    case = CASES["context"]
    constants = case.constants(90)
    n, r, m, tile = 2**27, 32, 16, constants["M"]
    sizes = {"n": n, "k": 2**20, "r": r, "d": r, "m": m, "share": 2**19}
    found = accesses(case.compile(90).asm["ttir"], (n // tile - 1, 0, 1), sizes)
    rows = np.arange(n - tile, n, dtype=np.int64)
    np.testing.assert_equal(found["alpha_bar_ptr"], [rows])
    np.testing.assert_equal(found["y_ptr"], [rows[:, None] * r + np.arange(r)])
    np.testing.assert_equal(found["context_ptr"], [rows[:, None] * m + np.arange(m)])
    np.testing.assert_equal(found["mean_ptr"], [(n + rows)[:, None] * r + np.arange(r)])
    np.testing.assert_equal(found["peak_ptr"], [n + rows])


def test_a_gpu_is_filled_whatever_the_number_of_queries():
    for tiles, k in ((1, 4096), (31, 4096), (1000, 4096), (8, 100)):
        share = module.keys_per_share(tiles, k, 64, processors=132)
        programs = tiles * -(-k // share)
        longest = module.SHORTEST_SHARE * 64
        assert share % 64 == 0
        assert programs >= 132 or share <= longest
        assert share >= min(k, longest)


def test_six_bfloat16_products_are_as_good_as_float32():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 32, generator=generator)
    truth = a.double() @ b.double().T
    (a1, a2, a3), (b1, b2, b3) = bfloat16_parts(a), bfloat16_parts(b)
    six = (a2 @ b2.T + a3 @ b1.T + a1 @ b3.T) + (a2 @ b1.T + a1 @ b2.T) + a1 @ b1.T
    error, error_of_float32 = ((product.double() - truth).abs().max() for product in (six, a @ b.T))
    assert error <= error_of_float32


def bfloat16_parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = x.bfloat16().float()
    second = (x - first).bfloat16().float()
    return first, second, (x - first - second).bfloat16().float()
