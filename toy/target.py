"""Two "modalities" x and y, one number each, whose joint density at every noise level is known in closed form.

A mixture of K Gaussians in (x, y) stays one under the VP-SDE: q_t = sum_k w_k N(alpha mu_k, alpha^2 Sigma_k + sigma^2
I). So do its marginals, so the base scores, the joint score, and the log-ratio L = log q_t(x, y) / (q_t(x) q_t(y))
are all exact:

    score = sum_k p(k | z_t) S_k^-1 (alpha mu_k - z_t),      S_k = alpha^2 Sigma_k + sigma^2 I

Used by toy/run.py and by the tests, as the oracle that learned networks and samplers are held against.
"""

import math

import torch
from torch import Tensor, nn

from pairs import Levels, both
from score import VPSDE


class Mixture:
    """weights (K,), means (K, D), covariances (K, D, D); z and scores (B, D), times (B,) or one such a dimension."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, sde: VPSDE):
        self.weights, self.means, self.covariances, self.sde = weights, means, covariances, sde

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], 1, generator=generator, dtype=self.means.dtype)
        return self.means[k] + (torch.linalg.cholesky(self.covariances)[k] @ noise)[..., 0]

    def _components(self, z: Tensor, t: Levels) -> tuple[Tensor, Tensor]:
        """log w_k N(z; alpha mu_k, S_k) (B, K) and S_k^-1 (alpha mu_k - z) (B, K, D)."""
        # one matrix inverse a noise level, not one a sample
        if isinstance(t, tuple):
            levels, index = torch.stack(t, dim=1).unique_consecutive(dim=0, return_inverse=True)
        else:
            levels, index = t.unique(return_inverse=True)
            levels = levels[:, None].expand(-1, z.shape[1])
        alpha, sigma = (a[:, None, :] for a in self.sde.marginal(levels))  # (levels, 1, D)
        means, covariances = self.means.to(z), self.covariances.to(z)
        S = alpha[..., None] * covariances * alpha[:, :, None] + torch.diag_embed(sigma**2)  # (levels, K, D, D)
        offset = (alpha * means)[index] - z[:, None]  # (B, K, D)
        pull = (torch.linalg.inv(S)[index] * offset[:, :, None]).sum(-1)
        log_density = -0.5 * ((pull * offset).sum(2) + torch.logdet(S)[index] + z.shape[1] * math.log(2 * math.pi))
        return self.weights.to(z).log() + log_density, pull

    def log_density(self, z: Tensor, t: Levels) -> Tensor:
        return self._components(z, t)[0].logsumexp(1)

    def score(self, z: Tensor, t: Levels) -> Tensor:
        log_parts, pull = self._components(z, t)
        return (log_parts.softmax(1)[..., None] * pull).sum(1)

    def marginal(self, axis: int) -> "Mixture":
        rows = slice(axis, axis + 1)
        return Mixture(self.weights, self.means[:, rows], self.covariances[:, rows, rows], self.sde)

    def log_ratio(self, z: Tensor, t: Levels) -> Tensor:
        """L = log q_t(x, y) - log q_t(x) - log q_t(y), (B,)."""
        apart = sum(self.marginal(i).log_density(z[:, i : i + 1], level) for i, level in enumerate(both(t)))
        return self.log_density(z, t) - apart


class ExactEps(nn.Module):
    """The analytic base network of one modality: xt (B, 1), t (B,) -> eps = -sigma_t score(xt)."""

    def __init__(self, target: Mixture, axis: int):
        super().__init__()
        self.target = target.marginal(axis)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.target.sde.score_to_eps(self.target.score(xt, t), t)


def gaussian(rho: float, sde: VPSDE) -> Mixture:
    """x, y ~ N(0, 1) with correlation rho; at noise level t it is rho_t = alpha_t^2 rho."""
    return Mixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, rho], [rho, 1.0]]]), sde)


def four_modes(sde: VPSDE) -> Mixture:
    """Four separate modes: either marginal shows the same four bumps, and nothing of which goes with which."""
    x = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 5**0.5
    means = torch.stack([x, x[torch.tensor([2, 0, 3, 1])]], dim=1)
    return Mixture(torch.full((4,), 0.25), means, 0.03 * torch.eye(2).expand(4, 2, 2), sde)


def mutual_information(target: Mixture, rho: float | None) -> float:
    """I(x; y) in nats: -1/2 log(1 - rho^2) for the Gaussian, else E[log-ratio] at t = 0 by quadrature on a grid."""
    if rho is not None:
        return -0.5 * math.log(1 - rho**2)
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    zero = torch.zeros(len(z), dtype=torch.float64)
    log_q = target.log_density(z, zero)
    return (log_q.exp() * target.log_ratio(z, zero)).sum().item() * (axis[1] - axis[0]).item() ** 2


def conditional(target: Mixture, x: float) -> tuple[float, float]:
    """Mean and variance of y given x at t = 0: each Gaussian's own, mixed by p(k | x)."""
    z, zero = torch.tensor([[x]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    weights = target.marginal(0)._components(z, zero)[0].softmax(1)[0]
    S = target.covariances.double()
    means = target.means[:, 1] + S[:, 0, 1] / S[:, 0, 0] * (x - target.means[:, 0])
    variances = S[:, 1, 1] - S[:, 0, 1] ** 2 / S[:, 0, 0]
    mean = (weights * means).sum()
    return mean.item(), (weights * (variances + (means - mean) ** 2)).sum().item()
