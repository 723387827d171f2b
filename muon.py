"""Muon, the optimizer of the discriminator's matrices (Jordan 2024, kellerjordan.github.io/posts/muon).

    M <- mu M + (1 - mu) G,   W <- (1 - eta lambda) W - eta max(1, rows/columns)^(1/2) orthogonal((1 - mu) G + mu M)

An update steps equally along all singular directions of a matrix; the faint ones carry the pairing. torch.optim.Muon is
the same in bfloat16, which a CPU without such instructions emulates: there it is half of a training step, and this,
in float32, a tenth.

Used by train.py.
"""

import torch
from torch import Tensor


def orthogonal(G: Tensor) -> Tensor:
    """About U V^T of G = U S V^T (rows, columns), by five Newton-Schulz iterations.

    They bring singular values from a hundredth of |G| upwards to between 0.68 and 1.21.
    """
    X = G / G.norm().clamp(min=1e-7)
    X = X.T if len(G) > G.shape[1] else X
    for _ in range(5):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if len(G) > G.shape[1] else X


class Muon(torch.optim.Optimizer):
    """For matrices alone."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for W in (p for p in group["params"] if p.grad is not None):
                M = self.state[W].setdefault("momentum_buffer", torch.zeros_like(W)).lerp_(W.grad, 1 - mu)
                update = orthogonal(W.grad.lerp(M, mu))
                W.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * max(1, len(W) / W.shape[1]) ** 0.5)
