import math

import pytest
import torch
from torch.testing import assert_close

from discriminator import residual_noise
from guidance import sample
from score import VPSDE, FrozenModel
from toy import run
from toy.target import ExactEps, conditional, four_modes, gaussian, mutual_information

SDE = VPSDE()


@pytest.mark.parametrize("target", [gaussian(-0.5, SDE), four_modes(SDE)], ids=["gaussian", "mixture"])
def test_gradient_of_the_log_ratio_is_joint_score_minus_base_scores(target, generator):
    t = torch.rand(40, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    z = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    x, y = (part.clone().requires_grad_() for part in z.split(1, dim=1))
    grads = torch.autograd.grad(target.log_ratio(torch.cat([x, y], dim=1), t).sum(), (x, y))
    base = torch.cat([target.marginal(i).score(z[:, i : i + 1], t) for i in (0, 1)], dim=1)
    assert_close(base + torch.cat(grads, dim=1), target.score(z, t))


@pytest.mark.parametrize("target", [gaussian(0.8, SDE), four_modes(SDE)], ids=["gaussian", "mixture"])
def test_density_integrates_to_one_and_has_the_moments_of_perturbed_samples(target, generator):
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    z, t = torch.cartesian_prod(axis, axis), torch.full((601 * 601,), 0.2, dtype=torch.float64)
    mass = target.log_density(z, t).exp() * (axis[1] - axis[0]) ** 2
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    x0 = target.sample(200_000, generator).double()
    xt = SDE.perturb(x0, t[:200_000], torch.randn(x0.shape, generator=generator, dtype=torch.float64))
    assert_close(xt.T.cov(), (mass[:, None, None] * z[:, :, None] * z[:, None]).sum(0), atol=0.01, rtol=0)


def test_mutual_information_by_quadrature_agrees_with_the_closed_form():
    target = gaussian(0.8, SDE)
    assert mutual_information(target, None) == pytest.approx(mutual_information(target, 0.8), rel=2e-3)
    assert mutual_information(four_modes(SDE), None) < math.log(4)


@pytest.mark.parametrize("target", [gaussian(-0.5, SDE), four_modes(SDE)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("x", [-1.4, 0.9])
def test_conditional_moments_are_those_of_the_density_along_a_line(target, x):
    y = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    z = torch.stack([torch.full_like(y, x), y], dim=1)
    weights = (target.log_density(z, torch.zeros_like(y))).softmax(0)
    mean = (weights * y).sum().item()
    assert conditional(target, x) == pytest.approx((mean, (weights * (y - mean) ** 2).sum().item()), rel=1e-5)


def test_the_marginals_of_the_mixture_are_alike():
    marginals = [four_modes(SDE).marginal(i) for i in (0, 1)]
    assert_close(*(m.means.sort(0).values for m in marginals))
    assert_close(marginals[0].covariances, marginals[1].covariances)


def test_kl_of_samples_against_their_own_density_is_nearly_zero(generator):
    target = gaussian(0.8, SDE)
    z = target.sample(100_000, generator)
    assert run.kl_gaussian(z, target.covariances[0]) < 1e-4
    assert run.kl_gaussian(z * 1.1, target.covariances[0]) == pytest.approx(0.21 - math.log(1.21), rel=0.1)
    mixture = four_modes(SDE)
    z = mixture.sample(100_000, generator)
    assert run.kl_histogram(z, mixture) < 0.01
    assert run.kl_histogram(torch.stack([z[:, 0], z[:, 1].roll(1)], dim=1), mixture) > 1


def test_a_briefly_trained_discriminator_halves_the_score_error_and_the_additive_form_gains_nothing(monkeypatch):
    monkeypatch.setattr(run, "BATCH", 512)
    target, bases = run.make_target("gaussian", 0.8)
    base = sum(run.score_errors(None, target, bases, n=2000))
    both = sum(run.score_errors(run.train_system("both", "gaussian", 0.8, 0, steps=250), target, bases, n=2000))
    additive = sum(run.score_errors(run.train_system("additive", "gaussian", 0.8, 0, steps=250), target, bases, n=2000))
    assert both < 0.5 * base
    assert additive > 0.97 * base


def test_guided_samples_of_the_mixture_fall_on_its_four_modes():
    target, generator = four_modes(SDE), torch.Generator().manual_seed(0)
    bases = [FrozenModel(ExactEps(target, axis), SDE) for axis in (0, 1)]

    class Exact(torch.nn.Module):
        def forward(self, x, y, t):
            return target.log_ratio(torch.cat([x, y], dim=1), t)

    z = torch.cat(sample(*bases, Exact(), (4000, 1), (4000, 1), 40, 1.0, "dpm++2m", generator), dim=1)
    nearest = (z[:, None] - target.means).norm(dim=2).min(1)
    assert (nearest.values < 0.7).float().mean() > 0.99
    assert_close(torch.bincount(nearest.indices, minlength=4) / 4000, torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_score_of_guidance_uses_the_shared_residual(generator):
    """joint_score is base eps plus residual_noise and nothing else."""
    target, bases = run.make_target("gaussian", 0.8)
    network, z, t = run.TinyDiscriminator(), torch.randn(9, 2, generator=generator), torch.full((9,), 0.2)
    x, y = (part.clone().requires_grad_() for part in z.split(1, dim=1))
    r = torch.cat(residual_noise(network(x, y, t), x, y, t, SDE), dim=1)
    difference = run.joint_score(network, bases, z, t) - run.joint_score(None, bases, z, t)
    assert_close(difference, SDE.eps_to_score(r, t), rtol=1e-3, atol=1e-5)
