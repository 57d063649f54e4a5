"""Which body of an op runs, and in which precision."""

import os
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from sdslab.kernels.validation import require_one_of

Backend = Literal["auto", "reference", "triton"]

Body = TypeVar("Body", bound=Callable[..., object])


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything narrower."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def choose_body(
    backend: Backend,
    device: torch.device,
    *,
    auto: Body,
    reference: Body,
    triton: Callable[[], Body],
) -> Body:
    """The function that `backend` names; never another one in its place.

    Args:
        backend: "auto" (the custom op, which dispatches by device), "reference" (plain torch) or
            "triton".
        device: Where the op's inputs live.
        auto: The registered custom op.
        reference: The plain torch body.
        triton: Imports and returns the Triton body.

    Raises:
        ValueError: The name is unknown, or Triton cannot run on `device`.
        ModuleNotFoundError: Triton is needed and not installed.
    """
    require_one_of("backend", backend, get_args(Backend))
    if backend == "auto":
        return auto
    if backend == "reference":
        return reference
    # Triton's own switch: its interpreter is what runs a kernel on CPU tensors.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend='triton' needs CUDA tensors, got tensors on {device}; move them to a GPU, "
            "pass backend='reference', or interpret the kernel (TRITON_INTERPRET=1 python ...)"
        )
    return triton()
