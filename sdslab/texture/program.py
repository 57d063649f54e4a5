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


def seen_words(seen: Tensor, covered: Tensor) -> tuple[str, float]:
    """How many of the covered texels were seen, in words and as a share.

    Args:
        seen: [h, w] bool.
        covered: [h, w] bool, texels that a face covers.
    """
    total = int(covered.sum())
    unseen = total - int((seen & covered).sum())
    if unseen == 0:
        return "every texel was seen", 1.0
    words = f"{unseen:,} of {total:,} texels were not seen: they take the nearest's colours"
    return words, 1 - unseen / total


Program = Callable[[Workspace, Progress], Textured]
