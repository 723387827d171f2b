"""The diffusion process, and a frozen model that knows its score.

Variance-preserving SDE (Song et al. 2021, arXiv 2011.13456, eq. 11), t in [0, 1]:

    dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw,      beta(t) = beta_min + t (beta_max - beta_min)
    x_t = alpha_t x_0 + sigma_t eps,                alpha_t = exp(-1/2 integral_0^t beta),  sigma_t^2 = 1 - alpha_t^2
    score = grad log q_t(x_t) = -E[eps | x_t] / sigma_t

Used by every other file: only `VPSDE` computes alpha and sigma, so training and sampling cannot disagree.
"""

import math

import torch
from torch import Tensor, nn


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """Give a per-sample coefficient (B,) the trailing axes of x (B, ...), so that the two multiply."""
    return coefficient.reshape(-1, *(1,) * (x.dim() - 1))


class VPSDE:
    """Variance-preserving SDE; times t have shape (B,), data any shape (B, ...)."""

    t_min = 1e-3  # below it eps can no longer be told from rounding; sampling and training stop there

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha_t = -1/2 integral_0^t beta(s) ds."""
        return -0.5 * (self.beta_min * t + 0.5 * t**2 * (self.beta_max - self.beta_min))

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I); expm1 keeps sigma exact near t = 0."""
        log_alpha = self.log_alpha(t)
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))

    def log_snr(self, t: Tensor) -> Tensor:
        """lambda_t = log(alpha_t^2 / sigma_t^2)."""
        log_alpha = self.log_alpha(t)
        return 2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha))

    def time_at(self, log_snr: Tensor) -> Tensor:
        """The t at which lambda_t = log_snr: -2 log alpha_t = log(1 + e^-lambda), a quadratic in t. Any real lambda."""
        rate, integral = self.beta_max - self.beta_min, torch.nn.functional.softplus(-log_snr)
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * rate * integral))

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t eps."""
        alpha, sigma = self.marginal(t)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * eps

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(x, t) = -1/2 beta(t) x."""
        return -0.5 * expand(self.beta(t), x) * x

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = sqrt(beta(t))."""
        return torch.sqrt(self.beta(t))

    def prior(self, shape: tuple, generator: torch.Generator | None = None, device="cpu", dtype=None) -> Tensor:
        """x_1 ~ N(0, I); drawn on the generator's own device, so that a seed gives the same start everywhere."""
        source = generator.device if generator is not None else device
        return torch.randn(shape, generator=generator, device=source, dtype=dtype).to(device)

    def eps_to_score(self, eps: Tensor, t: Tensor) -> Tensor:
        """score = -eps / sigma_t."""
        return -eps / expand(self.marginal(t)[1], eps)

    def score_to_eps(self, score: Tensor, t: Tensor) -> Tensor:
        """eps = -sigma_t score."""
        return -expand(self.marginal(t)[1], score) * score

    def eps_to_x0(self, xt: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0 = (x_t - sigma_t eps) / alpha_t."""
        alpha, sigma = self.marginal(t)
        return (xt - expand(sigma, xt) * eps) / expand(alpha, xt)

    def x0_to_eps(self, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """eps = (x_t - alpha_t x_0) / sigma_t."""
        alpha, sigma = self.marginal(t)
        return (xt - expand(alpha, xt) * x0) / expand(sigma, xt)

    def v_to_eps(self, xt: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """eps = alpha_t v + sigma_t x_t, from v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022, arXiv 2202.00512)."""
        alpha, sigma = self.marginal(t)
        return expand(alpha, xt) * v + expand(sigma, xt) * xt


class FrozenModel(nn.Module):
    """Any denoising network as a frozen score model: model(xt (B, ...), t (B,)) -> eps (B, ...).

    A network that takes a condition, such as a prompt's embedding, gets it after t: model(xt, t, *condition).
    Its parameters take no gradient and it stays in eval mode whatever its parent does, but its output is still
    differentiable in xt. `prediction` says what the network returns: "eps", "x0" or "v".
    """

    def __init__(self, network: nn.Module, sde: VPSDE, prediction: str = "eps"):
        super().__init__()
        if prediction not in ("eps", "x0", "v"):
            raise ValueError(f"prediction must be eps, x0 or v, not {prediction!r}")
        self.network, self.sde, self.prediction = network, sde, prediction
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenModel":
        return super().train(False)  # a parent's .train() must not wake dropout in a frozen model

    def forward(self, xt: Tensor, t: Tensor, *condition: Tensor) -> Tensor:
        out = self.network(xt, t, *condition)
        if self.prediction == "x0":
            return self.sde.x0_to_eps(xt, out, t)
        if self.prediction == "v":
            return self.sde.v_to_eps(xt, out, t)
        return out


class TimeFeatures(nn.Module):
    """Noise level t (B,) -> (B, dim): sines and cosines of log-SNR at several rates, then a small MLP.

    Log-SNR spreads the noise levels evenly; t itself would crowd the low-noise ones together.
    """

    def __init__(self, dim: int, sde: VPSDE | None = None, frequencies: int = 8):
        super().__init__()
        self.sde = sde or VPSDE()
        self.register_buffer("frequencies", math.pi / 16 * 1.6 ** torch.arange(frequencies), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        phase = self.sde.log_snr(t)[:, None] * self.frequencies.to(t.dtype)
        return self.mlp(torch.cat([phase.sin(), phase.cos()], dim=1))
