"""A study of the kernels as data. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdslab.errors import UserError
from sdslab.study.specification import build, read_study

SECTIONS = ("cases",)


@dataclass(frozen=True)
class KernelSettings:
    """What every row shares."""

    cpu_sizes: tuple[tuple[int, ...], ...]
    """[batch, height = width] of every case's rows on a CPU."""
    cuda_sizes: tuple[tuple[int, ...], ...]
    """The same on a GPU."""
    device: str = "auto"
    """"auto" is cuda where there is one."""
    cpu_repeats: int = 10
    """Timed calls of each row on a CPU, after two that are not."""
    cuda_repeats: int = 100
    """The same on a GPU."""
    copy_mb: int = 256
    """Size of the tensor whose copy tells the memory's bandwidth."""
    matmul_size: int = 2048
    """Side of the float32 matrices whose product tells the processor's rate."""
    compile: bool = True
    """Whether torch.compile of the eager code is timed too."""
    memory: bool = True
    """Whether the peak memory of ops with rivals is measured too."""
    out: str = "figures"
    """Folder for the results."""

    def sizes_on(self, device_type: str) -> tuple[tuple[int, ...], ...]:
        """The sizes for "cpu" or "cuda"."""
        return self.cuda_sizes if device_type == "cuda" else self.cpu_sizes

    def repeats_on(self, device_type: str) -> int:
        """The timed calls for "cpu" or "cuda"."""
        return self.cuda_repeats if device_type == "cuda" else self.cpu_repeats


@dataclass(frozen=True)
class KernelCase:
    """An op with its options, timed at every size."""

    name: str
    label: str
    operation: Literal[
        "perturb", "sds_gradient", "degenerate_sds_gradient", "sr_condition", "patch_posterior"
    ]
    """A name of ``sdslab.study.kernel_operations.OPERATIONS``."""
    channels: int = 3
    """Of the picture; of patch_posterior the coordinates of a patch."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the picture; of sds_gradient the model's output, beside a float32 picture."""
    noise: Literal["key", "tensor"] = "key"
    """Drawn from a key by the op, or given."""
    guided: bool = False
    """Whether a model's output has an unconditional half."""
    mode: Literal["castex", "pipeline"] = "castex"
    """Of sr_condition, which takes a render twice as large, and its quarter as the small size."""
    keys: int = 4096
    """Of patch_posterior, which has a query for each pixel."""
    cpu_sizes: tuple[tuple[int, ...], ...] = ()
    """Instead of the settings', where there are any."""
    cuda_sizes: tuple[tuple[int, ...], ...] = ()
    """The same on a GPU."""

    def sizes_on(self, device_type: str, settings: KernelSettings) -> tuple[tuple[int, ...], ...]:
        """The sizes for "cpu" or "cuda"."""
        own = self.cuda_sizes if device_type == "cuda" else self.cpu_sizes
        return own or settings.sizes_on(device_type)


@dataclass(frozen=True)
class KernelStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: KernelSettings
    cases: tuple[KernelCase, ...]


def load_kernel_study(path: Path, preset: str | None = None) -> KernelStudy:
    """Reads a study file of kind "kernels".

    Raises:
        UserError: a key or value that is not one of the valid ones.
    """
    tables = read_study(path, SECTIONS, preset)
    study = KernelStudy(
        name=tables.name,
        title=tables.title,
        preset=tables.preset,
        settings=build(KernelSettings, tables.settings, f"{path}: settings"),
        cases=tuple(build(KernelCase, row, f"{path}: cases") for row in tables.sections["cases"]),
    )
    _check_sizes(study.settings, f"{path}: settings")
    for case in study.cases:
        _check_sizes(case, f"{path}: cases.{case.name}")
    return study


def _check_sizes(holder: KernelSettings | KernelCase, place: str) -> None:
    for name in ("cpu_sizes", "cuda_sizes"):
        for size in getattr(holder, name):
            if len(size) != 2 or size[0] < 1 or size[1] < 4:
                raise UserError(
                    f"{place}.{name} must be pairs [batch, side] with a side of at least 4, got "
                    f"{list(size)}"
                )
