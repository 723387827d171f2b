import torch
from torch import nn
from torch.testing import assert_close

from score import VPSDE, FrozenModel
from toy.target import ExactEps, gaussian

SDE = VPSDE()
T = torch.linspace(SDE.t_min, 1, 50, dtype=torch.float64)


def test_alpha_is_the_integral_of_beta():
    """alpha_t = exp(-1/2 integral_0^t beta), the integral taken numerically."""
    for t in (0.01, 0.3, 1.0):
        s = torch.linspace(0, t, 10_001, dtype=torch.float64)
        alpha, _ = SDE.marginal(torch.tensor([t], dtype=torch.float64))
        assert_close(alpha[0], torch.exp(-0.5 * torch.trapezoid(SDE.beta(s), s)), rtol=1e-8, atol=0)


def test_variance_is_preserved():
    alpha, sigma = SDE.marginal(T)
    assert_close(alpha**2 + sigma**2, torch.ones_like(T), rtol=1e-12, atol=0)


def test_sigma_keeps_its_digits_near_zero():
    exact = SDE.marginal(torch.tensor([SDE.t_min], dtype=torch.float64))[1]
    single = SDE.marginal(torch.tensor([SDE.t_min], dtype=torch.float32))[1]
    assert_close(single.double(), exact, rtol=1e-6, atol=0)


def test_marginal_moments_match_an_euler_simulation_of_the_sde(generator):
    """dx = -1/2 beta x dt + sqrt(beta) dw from x0 = 2, to t = 0.4: mean 2 alpha, variance sigma^2."""
    x, steps, end = torch.full((100_000,), 2.0, dtype=torch.float64), 1000, 0.4
    for k in range(steps):
        t = torch.tensor([k * end / steps], dtype=torch.float64)
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64)
        x = x + SDE.drift(x, t) * end / steps + SDE.diffusion(t) * (end / steps) ** 0.5 * noise
    alpha, sigma = SDE.marginal(torch.tensor([end], dtype=torch.float64))
    assert_close(x.mean(), 2 * alpha[0], atol=0.01, rtol=0)
    assert_close(x.var(), sigma[0] ** 2, atol=0.012, rtol=0)


def test_log_snr_is_that_of_the_marginal():
    alpha, sigma = SDE.marginal(T)
    assert_close(SDE.log_snr(T), torch.log(alpha**2 / sigma**2), rtol=1e-9, atol=1e-9)


def test_conversions_recover_what_was_mixed(generator):
    x0, eps = (torch.randn(50, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    xt = SDE.perturb(x0, T, eps)
    alpha, sigma = (a[:, None, None] for a in SDE.marginal(T))
    assert_close(SDE.eps_to_x0(xt, eps, T), x0)
    assert_close(SDE.x0_to_eps(xt, x0, T), eps)
    assert_close(SDE.v_to_eps(xt, alpha * eps - sigma * x0, T), eps)
    assert_close(SDE.score_to_eps(SDE.eps_to_score(eps, T), T), eps)


def test_score_of_a_gaussian_is_the_gradient_of_its_log_density(generator):
    target = gaussian(0.8, SDE)
    z = torch.randn(50, 2, generator=generator, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(target.log_density(z, T).sum(), z)
    rho = 0.8 * SDE.marginal(T)[0] ** 2
    closed = -(z - rho[:, None] * z.flip(1)) / (1 - rho**2)[:, None]  # -S^-1 z, S = [[1, rho], [rho, 1]]
    assert_close(target.score(z, T), gradient)
    assert_close(gradient, closed, rtol=1e-5, atol=1e-5)  # the target's own numbers are single precision


def test_reverse_sde_recovers_gaussian_covariance(generator):
    """dx = [-1/2 beta x - beta score] dt + sqrt(beta) dw, from t = 1 down, with the exact joint score."""
    target, steps = gaussian(0.8, SDE), 400
    z = torch.randn(20_000, 2, generator=generator)
    grid = torch.linspace(1, SDE.t_min**0.5, steps + 1) ** 2
    for now, then in zip(grid[:-1], grid[1:], strict=True):
        t, dt = now.expand(len(z)), now - then
        reverse = SDE.drift(z, t) - SDE.beta(t)[:, None] * target.score(z, t)
        z = z - reverse * dt + SDE.diffusion(t)[:, None] * dt.sqrt() * torch.randn(z.shape, generator=generator)
    assert_close(z.T.cov(), target.covariances[0], atol=0.03, rtol=0)


class Network(nn.Module):
    """A linear guess with dropout, to see whether freezing holds."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, xt, t):
        return self.dropout(self.linear(xt))


def test_frozen_model_takes_no_gradient_keeps_eval_mode_and_stays_differentiable_in_its_input(generator):
    model = FrozenModel(Network(), SDE)
    nn.Sequential(model).train()
    assert not any(module.training for module in model.modules())
    x = torch.randn(4, 3, generator=generator, requires_grad=True)
    model(x, torch.full((4,), 0.5)).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert_close(x.grad, model.network.linear.weight.sum(0).expand(4, 3))


def test_frozen_model_turns_every_prediction_into_the_same_eps(generator):
    target = gaussian(0.8, SDE)
    exact, t = ExactEps(target, 0), torch.full((6,), 0.3)
    xt = torch.randn(6, 1, generator=generator)
    eps = exact(xt, t)
    alpha, sigma = (a[:, None] for a in SDE.marginal(t))
    x0 = SDE.eps_to_x0(xt, eps, t)
    answers = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}
    for prediction, answer in answers.items():

        class Says(nn.Module):
            def forward(self, xt, t, answer=answer):
                return answer

        assert_close(FrozenModel(Says(), SDE, prediction)(xt, t), eps, rtol=1e-4, atol=1e-5)


def test_time_at_is_the_inverse_of_log_snr_beyond_both_ends():
    t = torch.tensor([1e-7, 1e-4, 1e-3, 0.1, 0.5, 1.0, 1.5], dtype=torch.float64)
    assert_close(SDE.time_at(SDE.log_snr(t)), t, rtol=1e-9, atol=0)
    assert SDE.time_at(torch.tensor(torch.inf)) == 0
