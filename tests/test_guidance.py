import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import guidance
from discriminator import JointDiscriminator, residual_noise
from guidance import JointEps, denoise, sample
from pairs import both
from score import VPSDE, FrozenModel
from toy.target import gaussian

SDE, RHO = VPSDE(), 0.8
TARGET = gaussian(RHO, SDE)


class ExactEps(nn.Module):
    """Of x ~ N(0, 1), which stays that at every t: score = -x."""

    def forward(self, xt, t):
        return SDE.score_to_eps(-xt, t)


class ExactRatio(nn.Module):
    """The optimal discriminator: log q(x, y) - log q(x) - log q(y) of standard normals with correlation r."""

    def forward(self, x, y, t):
        r = RHO * math.prod(SDE.marginal(level)[0] for level in both(t))[:, None]
        log_ratio = (2 * r * x * y - r**2 * (x**2 + y**2)) / (2 * (1 - r**2)) - torch.log(1 - r**2) / 2
        return log_ratio[:, 0]


BASES = (FrozenModel(ExactEps(), SDE),) * 2


class NoiseIsABasis(VPSDE):
    """Each draw of the sampler becomes a basis vector of its own: row k of the batch is the k-th draw set to 1."""

    drawn = 2  # rows 0 and 1 are the start

    def prior(self, shape, generator=None, device="cpu", dtype=None):
        z = torch.zeros(shape, dtype=dtype)
        z[self.drawn] = 1
        self.drawn += 1
        return z


def output_covariance(solver: str, steps: int, discriminator: nn.Module | None) -> torch.Tensor:
    """Exact: with Gaussian scores a run is linear in its start and in every draw, z_end = M z, so its output
    covariance is M M^T.
    """
    basis = torch.zeros(2 + 2 * steps * any(guidance.SOLVERS[solver][1:]), 2, dtype=torch.float64)
    basis[:2] = torch.eye(2)
    *_, states = denoise(JointEps(*BASES, discriminator), basis.split(1, dim=1), NoiseIsABasis(), steps, solver)
    image = torch.cat(states, dim=1)
    return image.T @ image


def true_covariance(rho: float) -> torch.Tensor:
    rho = rho * SDE.marginal(torch.tensor([SDE.t_min], dtype=torch.float64))[0].item() ** 2
    return torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)


def covariance_error(solver: str, steps: int) -> float:
    return (output_covariance(solver, steps, ExactRatio()) - true_covariance(RHO)).abs().max().item()


def test_closed_forms_are_those_of_the_mixture_of_one(generator):
    """At equal levels and at two: what the samplers here are held against, and what toy/ is, derived apart."""
    x, y = torch.randn(2, 40, 1, generator=generator, dtype=torch.float64)
    t, s = torch.rand(2, 40, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    for levels in (t, (t, s)):
        assert_close(ExactRatio()(x, y, levels), TARGET.log_ratio(torch.cat([x, y], dim=1), levels))
    assert_close(ExactEps()(x, t), SDE.score_to_eps(TARGET.marginal(0).score(x, t), t))


@pytest.mark.parametrize(("solver", "order", "steps"), [("ddim", 1, 200), ("dpm++2m", 2, 100)])
def test_guided_sampler_reaches_the_joint_covariance(solver, order, steps):
    """To 5e-5, what starting from N(0, I) in place of q_1 leaves; and at the order of the solver."""
    coarse, fine, finest = (output_covariance(solver, n * steps, ExactRatio()) for n in (1, 2, 4))
    change = (fine - coarse).abs().max().item() / (finest - fine).abs().max().item()
    assert change == pytest.approx(2**order, rel=0.15)
    limit = finest + (finest - fine) / (2**order - 1)  # Richardson
    assert_close(limit, true_covariance(RHO), atol=5e-5, rtol=0)


@pytest.mark.parametrize(("solver", "order"), [("ddpm", 1), ("dpm++2m-sde", 2)])
def test_sampler_with_fresh_noise_forgets_its_start_and_reaches_the_joint_covariance(solver, order):
    errors = [covariance_error(solver, steps) for steps in (100, 200, 400)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.03)


def test_noise_that_changes_with_t_leaves_the_joint_covariance_and_the_order_as_they_are(monkeypatch):
    """On grids that have the levels where its amount changes among their points, as time_grid has not."""
    assert covariance_error("dpm++2m-churn", 400) < 5e-5

    def grid(steps: int, sde: VPSDE, _: float) -> torch.Tensor:
        parts = []
        for start, end, share in ((1, guidance.SETTLED, 4), (guidance.SETTLED, guidance.SHARP, 2),
                                  (guidance.SHARP, sde.t_min, 4)):  # fmt: skip
            part = torch.linspace(start**0.5, end**0.5, steps // share + 1, dtype=torch.float64) ** 2
            part[0] = start  # not to rounding: the amount changes there
            parts.append(part[:-1])
        return torch.cat([*parts, torch.tensor([sde.t_min], dtype=torch.float64)])

    monkeypatch.setattr(guidance, "time_grid", grid)
    errors = [covariance_error("dpm++2m-churn", steps) for steps in (100, 200, 400)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.03)


def test_second_order_pays_at_25_steps():
    """The figures in sample's docstring."""
    assert covariance_error("ddpm", 25) == pytest.approx(0.20, abs=0.01)
    assert covariance_error("dpm++2m-sde", 25) == pytest.approx(0.035, abs=0.001)
    assert covariance_error("dpm++2m-churn", 25) == pytest.approx(0.006, abs=0.001)


def test_ddim_halves_its_error_on_a_grid_uniform_in_t(monkeypatch):
    monkeypatch.setattr(
        guidance, "time_grid", lambda n, sde, _: torch.linspace(1, sde.t_min, n + 1, dtype=torch.float64)
    )
    errors = [covariance_error("ddim", steps) for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_the_time_grid_beats_uniform_t_and_uniform_log_snr_at_25_steps(monkeypatch):
    """The figures in time_grid's docstring."""
    assert covariance_error("dpm++2m", 25) == pytest.approx(0.006, abs=0.001)
    monkeypatch.setattr(
        guidance, "time_grid", lambda n, sde, _: torch.linspace(1, sde.t_min, n + 1, dtype=torch.float64)
    )
    assert covariance_error("dpm++2m", 25) == pytest.approx(0.12, abs=0.005)
    fine = torch.linspace(1, SDE.t_min, 1_000_001, dtype=torch.float64)
    levels = SDE.log_snr(fine)
    grid = fine[
        torch.searchsorted(levels, torch.linspace(levels[0], levels[-1], 26, dtype=torch.float64)).clamp(max=10**6)
    ]
    monkeypatch.setattr(guidance, "time_grid", lambda n, sde, _: grid)
    assert covariance_error("dpm++2m", 25) == pytest.approx(0.017, abs=0.001)


def test_without_guidance_the_modalities_stay_independent():
    assert_close(output_covariance("dpm++2m", 200, None), true_covariance(0.0), atol=1e-4, rtol=0)


def test_the_last_ancestral_step_has_the_variance_of_the_posterior():
    """One ddpm step from t to s with the true x0 known leaves N(alpha_s x0, sigma_s^2), whatever t: x0 = 0, x_t =
    sigma_t eps.
    """
    generator = torch.Generator().manual_seed(0)
    steps = denoise(lambda states, t: tuple(x / SDE.marginal(t)[1][:, None] for x in states),
                    (torch.randn(200_000, 1, generator=generator),), SDE, 20, "ddpm", generator)  # fmt: skip
    grid = guidance.time_grid(20, SDE)
    for s, (x,) in zip(grid[1:8], steps, strict=False):
        assert_close(x.var().double(), SDE.marginal(s)[1] ** 2, rtol=0.02, atol=0)


@pytest.mark.parametrize("climb_below", [0.0, 0.3])
@pytest.mark.parametrize("solver", guidance.SOLVERS)
def test_weight_zero_equals_the_base_models_bit_for_bit(solver, climb_below):
    runs = []
    for discriminator, weight in ((ExactRatio(), 0.0), (None, 1.0)):
        generator = torch.Generator().manual_seed(3)
        how = {"generator": generator, "climb_below": climb_below}
        runs.append(sample(*BASES, discriminator, (64, 1), (64, 1), 10, weight, solver, **how))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_one_call_of_each_network_a_step():
    calls = []

    class Counts(nn.Module):
        def __init__(self, inner, name):
            super().__init__()
            self.inner, self.name = inner, name

        def forward(self, *args):
            calls.append(self.name)
            return self.inner(*args)

    models = [FrozenModel(Counts(ExactEps(), name), SDE) for name in "va"]
    sample(*models, Counts(ExactRatio(), "d"), (4, 1), (4, 1), steps=7)
    assert sorted(calls) == ["a"] * 7 + ["d"] * 7 + ["v"] * 7


def test_weights_differ_per_modality():
    states = (torch.ones(3, 1), torch.full((3, 1), -0.5))
    t = torch.full((3,), 0.3)
    base, full = JointEps(*BASES, None)(states, t), JointEps(*BASES, ExactRatio())(states, t)
    only_video = JointEps(*BASES, ExactRatio(), weight=(1.0, 0.0))(states, t)
    assert_close(only_video, (full[0], base[1]))


@pytest.mark.parametrize("weights", [(3.0, 1.5), (2.0, 0.5)])
def test_a_weight_above_one_is_of_the_pair_term_and_leaves_the_repairs_whole(weights, generator):
    network, t = JointDiscriminator().double(), torch.full((2,), 0.4, dtype=torch.float64)
    shapes = (2, *network.video_shape), (2, *network.audio_shape)
    states = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    v, a = (x.clone().requires_grad_() for x in states)
    features = network.encode(v, a, t)
    pair = residual_noise(network.pair(*features, t), v, a, t, SDE, retain_graph=True)
    repairs = residual_noise(network.repair(*features), v, a, t, SDE)
    expected = tuple(w * p + min(w, 1) * r for w, p, r in zip(weights, pair, repairs, strict=True))
    silent = (FrozenModel(lambda xt, t: xt * 0, SDE, "eps"),) * 2
    assert_close(JointEps(*silent, network, weights)(states, t), expected, atol=1e-12, rtol=1e-6)
    assert min(r.abs().max() for r in repairs) > 1e-6


@pytest.mark.parametrize(
    ("weights", "pictures", "sounds"),
    [
        ((2.0,), (2.0, 2.0, 2.0, 2.0), (2.0, 2.0, 2.0, 2.0)),
        ((1.0, 2.0), (0.0, 0.0, 2.0, 2.0), (1.0, 2.0, 2.0, 2.0)),
        ((0.5, 2.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.5, 2.0, 2.0, 0.0)),
    ],
)
def test_of_two_weights_the_picture_has_none_while_the_sound_is_settled_beside_it(weights, pictures, sounds):
    states = (torch.ones(3, 1), torch.full((3, 1), -0.5))
    by_level = JointEps(*BASES, ExactRatio(), weight=guidance.by_noise_level(*weights))
    levels = (guidance.SETTLED + 0.01, guidance.ALONE + 0.01, guidance.ALONE - 0.01, guidance.FINE - 0.01)
    for level, *weight in zip(levels, pictures, sounds, strict=True):
        t = torch.full((3,), level)
        assert_close(by_level(states, t), JointEps(*BASES, ExactRatio(), tuple(weight))(states, t), atol=0, rtol=0)


def test_a_picture_left_alone_at_first_is_still_drawn_with_its_sound():
    """By an exact discriminator, at weight 1; a picture that is left alone down to the end has less of its sound."""
    options = {"solver": "dpm++2m-sde", "steps": 100}
    for weight, low, high in ((guidance.by_noise_level(1.0, 1.0), 0.79, 0.81), ((0.0, 1.0), 0.5, 0.6)):
        shape, generator = (20_000, 1), torch.Generator().manual_seed(0)
        pair = torch.cat(sample(*BASES, ExactRatio(), shape, shape, weight=weight, generator=generator, **options), 1)
        assert low < pair.T.corrcoef()[0, 1].item() < high
        assert pair[:, 0].var().item() == pytest.approx(1, rel=0.03)


def test_of_two_weights_the_second_holds_from_the_start_where_a_modality_is_given():
    given = guidance.by_noise_level(0.5, 2.0, 0.0, given=True)
    assert [given(t) for t in (1.0, 0.61, 0.11, 0.1)] == [(2.0, 2.0), (2.0, 2.0), (2.0, 2.0), (0.0, 0.0)]


def test_a_given_modality_is_kept_and_pulls_the_other_towards_it():
    """y | x ~ N(0.8 x, 0.36); conditioning on x_t in place of x_0 goes about half the way, as JointEps says."""
    given = torch.full((20_000, 1), 1.5)
    given_at = {"given_video": given, "given_at": "noised", "generator": torch.Generator().manual_seed(0)}
    x, y = sample(*BASES, ExactRatio(), given.shape, given.shape, 50, 1.0, "ddpm", **given_at)
    assert torch.equal(x, given)
    assert 0.5 * RHO * 1.5 < y.mean().item() < RHO * 1.5
    assert y.var().item() < 0.6


@pytest.mark.parametrize("keep", [0, 1])
def test_a_modality_given_clean_yields_the_exact_conditional(keep):
    """y | x ~ N(0.8 x, 0.36), and the same of x | y."""
    given = torch.full((10_000, 1), 1.5, dtype=torch.float64)
    known = {("given_video", "given_audio")[keep]: given}
    eps_model = {"steps": 100, "generator": torch.Generator().manual_seed(0)}
    clips = sample(*BASES, ExactRatio(), given.shape, given.shape, solver="dpm++2m-sde", **eps_model, **known)
    assert torch.equal(clips[keep], given)
    assert clips[1 - keep].mean().item() == pytest.approx(RHO * 1.5, rel=0.02)
    assert clips[1 - keep].var().item() == pytest.approx(1 - RHO**2, rel=0.05)


@pytest.mark.parametrize(("solver", "climb_below"), [*((name, 0.0) for name in guidance.SOLVERS), ("dpm++2m", 0.3)])
def test_a_kept_part_is_noised_to_each_level_and_pulls_the_rest_towards_it(solver, climb_below):
    """The video is the correlated pair itself, of which x1 = 1.5 is kept: x2 | x1 ~ N(1.2, 0.36), approached."""
    seen = []

    class PairEps(nn.Module):
        def forward(self, xt, t):
            seen.append((t[0], xt[:, 0].mean(), xt[:, 0].std()))
            return SDE.score_to_eps(TARGET.score(xt, t), t)

    given = torch.tensor([[1.5, -7.0]]).expand(20_000, 2)
    keep = {"given_video": given, "keep": (torch.tensor([True, False]), None)}
    models = FrozenModel(PairEps(), SDE), BASES[1]
    shapes, generator = ((20_000, 2), (20_000, 1)), torch.Generator().manual_seed(0)
    x, _ = sample(*models, None, *shapes, 50, 1.0, solver, generator, climb_below=climb_below, **keep)
    assert torch.equal(x[:, 0], given[:, 0])
    for t, mean, spread in seen:
        alpha, sigma = SDE.marginal(t)
        assert_close(mean, 1.5 * alpha, atol=0.03, rtol=0)
        assert_close(spread, sigma, atol=0.03, rtol=0)
    assert 0.4 * RHO * 1.5 < x[:, 1].mean().item() < RHO * 1.5 and x[:, 1].var().item() < 0.75


def test_unknown_solver_is_refused():
    with pytest.raises(ValueError, match="solver must be one of"):
        sample(*BASES, None, (1, 1), (1, 1), solver="euler")


def test_unknown_level_of_a_given_modality_is_refused():
    with pytest.raises(ValueError, match="given_at must be clean or noised"):
        sample(*BASES, None, (1, 1), (1, 1), given_at="early")
