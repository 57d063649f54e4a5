"""Compiles every kernel for a GPU that need not be there; run by test_triton_kernels.py.

The interpreter accepts programs that the compiler refuses, so interpreted tests are not enough.
"""

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from sdslab.kernels import triton_kernels

HOPPER = GPUTarget("cuda", 90, 32)
FP32 = {"DTYPE": tl.float32, "BLOCK": 1024}
FP64 = {"DTYPE": tl.float64, "BLOCK": 1024}
BY_KEY = {"noise_ptr": None}
BY_TENSOR = {"sample_ptr": None}


def compile_kernel(name, constants, element="fp32", output="fp32"):
    kernel = getattr(triton_kernels, name)
    compute = "fp64" if constants.get("DTYPE") == tl.float64 else "fp32"
    types = {
        "sample_ptr": "*i64",
        "bits_ptr": "*i64",
        "nonfinite_ptr": "*i32",
        "alpha_bar_ptr": "*fp32",
        "weight_ptr": "*fp32",
        "loss_ptr": f"*{compute}",
        "gradient_ptr": f"*{compute}",
        "model_output_ptr": f"*{output}",
        "n": "i32",
        "output_stride": "i32",
        "conditional_offset": "i64",
        "target_stride": "i32",
    }
    signature = {
        parameter.name: "constexpr"
        if parameter.name in constants
        else parameter.annotation_type or types.get(parameter.name, f"*{element}")
        for parameter in kernel.params
    }
    source = ASTSource(kernel, signature, constants)
    compile(source, target=HOPPER, options={"enable_fp_fusion": False})


compile_kernel("bits_kernel", {"BLOCK": 1024})
compile_kernel("normal_kernel", FP32, "bf16")
compile_kernel("perturb_kernel", FP32 | BY_KEY, "fp16")
# Triton takes an argument of 1, the size of a single pixel, for a constant.
compile_kernel("perturb_kernel", FP64 | BY_TENSOR | {"n": 1}, "fp64")
for prediction_type, form, clamp in (
    ("epsilon", "x0", 1.0),
    ("v", "epsilon", None),
    ("x0", "epsilon", 1.0),
):
    mode = {"PREDICTION_TYPE": prediction_type, "FORM": form, "CLAMP": clamp}
    compile_kernel("sds_gradient_kernel", FP32 | BY_TENSOR | mode | {"GUIDED": True}, output="fp16")
mode = {"PREDICTION_TYPE": "epsilon", "FORM": "epsilon", "CLAMP": 1.0, "GUIDED": False}
compile_kernel("sds_gradient_kernel", FP64 | BY_KEY | mode, "fp64", output="bf16")
compile_kernel("degenerate_sds_gradient_kernel", FP32 | {"FORM": "epsilon", "CLAMP": 1.0}, "bf16")
compile_kernel("degenerate_sds_gradient_kernel", FP64 | {"FORM": "x0", "CLAMP": None}, "fp64")
