"""Muon (Jordan 2024, kellerjordan.github.io/posts/muon): steps equally along all singular directions of a matrix.

    M <- mu M + (1 - mu) G,   W <- (1 - eta lambda) W - eta max(1, rows/columns)^(1/2) orthogonal((1 - mu) G + mu M)

As torch.optim.Muon, but in float32: on a CPU without bfloat16 instructions that one takes half of a training step. A
convolution's kernel counts as the matrix (channels out, all else).

Used by train.py: the faint directions of the discriminator's matrices carry the pairing, and the video model reaches
AdamW's error in well under half the steps.
"""

import torch
from torch import Tensor


def orthogonal(G: Tensor) -> Tensor:
    """About U V^T of G = U S V^T: five Newton-Schulz steps bring S from above |G| / 100 to between 0.68 and 1.21."""
    X = G / G.norm().clamp(min=1e-7)
    X = X.T if len(G) > G.shape[1] else X
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if len(G) > G.shape[1] else X


class Muon(torch.optim.Optimizer):
    """For matrices and kernels alone."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for W in (p for p in group["params"] if p.grad is not None):
                M = self.state[W].setdefault("momentum_buffer", torch.zeros_like(W)).lerp_(W.grad, 1 - mu)
                update = orthogonal(W.grad.lerp(M, mu).flatten(1))
                step = lr * max(1, len(update) / update.shape[1]) ** 0.5
                W.mul_(1 - lr * group["weight_decay"]).sub_(step * update.view_as(W))
