"""Fused operations: each has a plain torch body, a Triton body and, but for two, a CPU's own."""

from sdslab.kernels.degenerate_sds import degenerate_sds_gradient
from sdslab.kernels.noising import SRMode, perturb, sr_condition
from sdslab.kernels.philox import (
    NOISE_STREAM,
    SR_CONDITION_STREAM,
    TIMESTEP_STREAM,
    NoiseKey,
    philox_bits,
    philox_normal,
    philox_uniform,
)
from sdslab.kernels.sds_gradients import (
    Form,
    PredictionType,
    SDSResult,
    sds_gradient_from_output,
)
from sdslab.kernels.validation import Backend

__all__ = [
    "NOISE_STREAM",
    "SR_CONDITION_STREAM",
    "TIMESTEP_STREAM",
    "Backend",
    "Form",
    "NoiseKey",
    "PredictionType",
    "SDSResult",
    "SRMode",
    "degenerate_sds_gradient",
    "perturb",
    "philox_bits",
    "philox_normal",
    "philox_uniform",
    "sds_gradient_from_output",
    "sr_condition",
]
