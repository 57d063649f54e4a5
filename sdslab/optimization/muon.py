"""Muon, the optimiser that the shipped autoencoder was trained with."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for convolution kernels.

    torch's own ``Muon`` takes matrices only and multiplies in bfloat16, which CPUs without it
    emulate at a twentieth of the speed.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; update
    scaled to AdamW's size as in Liu et al. 2025 (arXiv 2502.16982).
    """

    def __init__(self, kernels: list[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @staticmethod
    def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
        """Newton–Schulz iteration towards the nearest semi-orthogonal matrix."""
        tall = matrix.shape[0] > matrix.shape[1]
        x = matrix.T if tall else matrix
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return x.T if tall else x

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every kernel in place."""
        for group in self.param_groups:
            for kernel in group["params"]:
                mean = self.state[kernel].setdefault("mean", torch.zeros_like(kernel))
                mean.mul_(group["momentum"]).add_(kernel.grad)
                update = (kernel.grad + group["momentum"] * mean).flatten(1)
                size = 0.2 * max(update.shape) ** 0.5
                update = self.orthogonalise(update).view_as(kernel)
                kernel.mul_(1 - 0.01 * group["lr"]).sub_(update, alpha=group["lr"] * size)
