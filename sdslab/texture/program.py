"""What each guidance gives back to the runner."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.progress import Progress
from torch import Tensor

from sdslab.texture.workspace import Workspace


@dataclass(frozen=True, eq=False)
class Textured:
    """A textured mesh, not yet written.

    Attributes:
        materials: [size, size, 8] by name, on the CPU; the first is the result.
        results: numbers for ``run.json``.
        lines: the same for people.
        interrupt: Ctrl-C or SIGTERM, where one ended it early.
    """

    materials: Mapping[str, Tensor]
    results: Mapping[str, Any]
    lines: tuple[str, ...]
    interrupt: KeyboardInterrupt | None


Program = Callable[[Workspace, Progress], Textured]
