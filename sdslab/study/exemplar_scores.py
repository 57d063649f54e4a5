"""How alike a made picture and a photograph are."""

from dataclasses import dataclass

from torch import Tensor

from sdslab.pictures.metrics import (
    completeness,
    contrast,
    fidelity,
    gradient_energy,
    sliced_wasserstein,
)


@dataclass(frozen=True)
class Scores:
    """How alike a picture and a photograph of the same scale are."""

    sliced_wasserstein: float
    """Between 7 × 7 patches, in pixel values of [0, 1]; 0 is alike."""
    contrast: float
    """Standard deviation over the photograph's; 1 is alike."""
    gradient_energy: float
    """Over the photograph's; below 1 is blurred."""
    fidelity: float
    """Distance of the picture's patches from the photograph's nearest ones."""
    completeness: float
    """Distance of the photograph's patches from the picture's nearest ones."""

    @classmethod
    def of(cls, picture: Tensor, photo: Tensor) -> "Scores":
        """Compares [1, 3, h, h] with [1, 3, h', h'], both in [0, 1]."""
        # A uniform photograph has no contrast to be compared with.
        return cls(
            sliced_wasserstein(picture, photo),
            _ratio(contrast(picture), contrast(photo)),
            _ratio(gradient_energy(picture), gradient_energy(photo)),
            fidelity(picture, photo),
            completeness(picture, photo),
        )


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else float("nan")
