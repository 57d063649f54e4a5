"""Checks of the ops' arguments, and the body and precision that follow from them.

Each error says what must hold, what came and what to do.
"""

import importlib.util
import operator
import os
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

# Which ends of [0, 1] an equation can stand: those that it does not divide by.
Interval = Literal["[0, 1]", "(0, 1]", "(0, 1)"]

# What a caller may ask for (tests and the kernel study compare bodies), and what that comes to.
Backend = Literal["auto", "reference", "triton"]
Body = Literal["reference", "cpu", "triton"]


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything narrower."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def body_for(backend: Backend, device: torch.device) -> Body:
    """The body that `backend` names; never another one in its place.

    Args:
        backend: "auto" (by device; plain torch on a GPU without Triton, of which the renderer
            leaves a note), "reference" (plain torch) or "triton".
        device: Where the op's inputs live.

    Raises:
        ValueError: The name is unknown, or Triton cannot run on `device`.
    """
    require_one_of("backend", backend, get_args(Backend))
    if backend == "auto":
        on_gpu: Body = "triton" if _has_triton() else "reference"
        bodies: dict[str, Body] = {"cpu": "cpu", "cuda": on_gpu}
        return bodies.get(device.type, "reference")
    # Triton's own switch: its interpreter is what runs a kernel on CPU tensors.
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "triton" and device.type != "cuda" and not interpreted:
        raise ValueError(
            f"backend='triton' needs CUDA tensors, got tensors on {device}; move them to a GPU, "
            "pass backend='reference', or interpret the kernel (TRITON_INTERPRET=1 python ...)"
        )
    return backend


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def require_one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """`value` is one of the names in `valid`."""
    if value not in valid:
        raise ValueError(
            f"{name} must be one of {', '.join(valid)}, got {value!r}; pass one of those"
        )


def require_type(name: str, value: object, expected: type, advice: str) -> None:
    """`value` is an instance of the class that the annotation says."""
    if not isinstance(value, expected):
        raise TypeError(
            f"{name} must be of type {expected.__name__}, got {type(value).__name__}; {advice}"
        )


def require_integer(name: str, value: object) -> None:
    """`value` is a whole number, and no tensor."""
    if isinstance(value, (bool, Tensor)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}; pass a whole number")


def require_layout(name: str, x: Tensor, layout: str, **sizes: int) -> None:
    """`x` is a floating tensor of the named dimensions, such as "b c h w"; some may be known."""
    require_type(name, x, Tensor, "convert it with torch.from_numpy or torch.as_tensor")
    names = layout.split()
    wanted = [sizes.get(dimension) for dimension in names]
    fits = x.ndim == len(names) and all(
        size in (None, extent) for size, extent in zip(wanted, x.shape, strict=True)
    )
    if not (fits and x.dtype.is_floating_point):
        text = ", ".join(str(sizes.get(dimension, dimension)) for dimension in names)
        raise ValueError(
            f"{name} must be floating point [{text}], got {list(x.shape)} of {x.dtype}; convert "
            f"it with .float(), .movedim or [None]"
        )


def require_shape(name: str, shape: object, dimensions: int) -> None:
    """`shape` is so many positive integers."""
    sizes = shape if isinstance(shape, (tuple, list)) else ()
    if len(sizes) != dimensions or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(f"{name} must be {dimensions} positive integers, got {shape}")


def require_samples(name: str, x: Tensor, *, min_dims: int = 1) -> None:
    """`x` is a non-empty floating tensor with a batch dimension."""
    require_type(name, x, Tensor, "convert it with torch.from_numpy or torch.as_tensor")
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"{name} must be a floating-point tensor, got {x.dtype}; convert it with .float()"
        )
    if x.ndim < min_dims or x.numel() == 0:
        expected = "[b, *dims]" if min_dims == 1 else "[b, c, *spatial]"
        raise ValueError(
            f"{name} must be {expected} and not empty, got {list(x.shape)}; "
            "add the missing dimension, or skip the step if no sample is left"
        )


def require_like(
    name: str, tensor: Tensor, x: Tensor, shapes: tuple[list[int], ...], advice: str
) -> None:
    """`tensor` is floating, lives where x lives and has one of the given shapes."""
    require_type(name, tensor, Tensor, advice)
    if not tensor.dtype.is_floating_point:
        raise ValueError(
            f"{name} must be a floating-point tensor, got {tensor.dtype}; convert it with .float()"
        )
    if list(tensor.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(
            f"{name} must be {expected} for x {list(x.shape)}, got {list(tensor.shape)}; {advice}"
        )
    if tensor.device != x.device:
        raise ValueError(
            f"{name} must be on the device of x, {x.device}, got {tensor.device}; "
            "move it with .to(x.device)"
        )


def require_alpha_bar(alpha_bar: Tensor, x: Tensor, interval: Interval) -> None:
    """`alpha_bar` holds one value per sample, inside `interval`."""
    require_like(
        "alpha_bar",
        alpha_bar,
        x,
        ([x.shape[0]],),
        "look it up as schedule.alpha_bar[t] with one t per sample",
    )
    # Reading values back from a GPU would stall every step, so they are checked on the CPU only.
    if alpha_bar.device.type != "cpu":
        return
    above = operator.ge if interval[0] == "[" else operator.gt
    below = operator.le if interval[-1] == "]" else operator.lt
    outside = [value for value in alpha_bar.tolist() if not (above(value, 0) and below(value, 1))]
    if outside:
        raise ValueError(
            f"alpha_bar must be in {interval} here, got {outside}; "
            "restrict the timesteps, or choose a form and prediction_type that do not divide by 0"
        )


def require_weight(weight: Tensor, x: Tensor) -> None:
    """`weight` holds one value per sample."""
    require_like(
        "weight", weight, x, ([x.shape[0]],), "evaluate the weighting at one timestep per sample"
    )


def require_clamp(clamp: float | None) -> None:
    """`clamp` is absent or a positive bound."""
    if clamp is not None and (isinstance(clamp, bool) or not isinstance(clamp, (int, float))):
        raise TypeError(f"clamp must be a number or None, got {clamp!r}; it bounds |x̂_0|")
    if clamp is not None and not clamp > 0:
        raise ValueError(
            f"clamp must be positive or None, got {clamp}; pass 1.0 for a pixel space of [-1, 1]"
        )


def require_no_graph(**tensors: Tensor) -> None:
    """No tensor asks for a gradient, which these ops would not give."""
    for name, tensor in tensors.items():
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient, because this op has no backward pass, "
                f"got requires_grad=True; pass {name}.detach()"
            )
