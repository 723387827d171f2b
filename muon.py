"""How weights move: Muon, which weights it gets, and the learning rate.

Muon (Jordan 2024, kellerjordan.github.io/posts/muon): steps equally along all singular directions of a matrix.

    M <- mu M + (1 - mu) G,   W <- (1 - eta lambda) W - eta max(1, rows/columns)^(1/2) orthogonal((1 - mu) G + mu M)

As torch.optim.Muon, but in float32: on a CPU without bfloat16 instructions that one takes half of a training step. A
convolution's kernel counts as the matrix (channels out, all else).

Used by train.py: the faint directions of the discriminator's matrices carry the pairing, and the base models reach
AdamW's error in well under half the steps.
"""

import math

import torch
from torch import Tensor, nn


def orthogonal(G: Tensor) -> Tensor:
    """About U V^T of each G = U S V^T in (..., rows, columns): five Newton-Schulz steps bring S from above |G| / 100 to
    between 0.68 and 1.21.
    """
    tall = G.shape[-2] > G.shape[-1]
    X = G / G.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    X = X.mT if tall else X
    for _ in range(5):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.mT if tall else X


class Muon(torch.optim.Optimizer):
    """For matrices and kernels alone."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            alike = {}  # by shape: on a GPU many small products take longer to start than to do
            for W in (p for p in group["params"] if p.grad is not None):
                M = self.state[W].setdefault("momentum_buffer", torch.zeros_like(W)).lerp_(W.grad, 1 - mu)
                alike.setdefault(W.flatten(1).shape, []).append((W, W.grad.lerp(M, mu).flatten(1)))
            for (rows, columns), pairs in alike.items():
                updates = orthogonal(torch.stack([direction for _, direction in pairs]))
                step = lr * max(1, rows / columns) ** 0.5
                for (W, _), update in zip(pairs, updates, strict=True):
                    W.mul_(1 - lr * group["weight_decay"]).sub_(step * update.view_as(W))


def learning_rate(step: int, progress: float) -> float:
    """Share of the peak rate: a linear warm-up over 100 steps, then half a cosine down to 0 at progress 1."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def make_optimizers(network: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices and kernels; AdamW at a tenth of the rate for vectors and a UNet's first and last layer."""
    matrices, rest = [], []
    for name, p in network.named_parameters():
        end = "body.into." in name or "body.out." in name
        is_matrix = p.ndim > 1 and name.endswith("weight") and not end
        (matrices if is_matrix else rest).append(p)
    adamw = torch.optim.AdamW(rest, lr=lr / 10, betas=(0.9, 0.99), weight_decay=0.01)
    return [Muon(matrices, lr), adamw]
