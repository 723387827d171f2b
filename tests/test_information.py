import math

import pytest
import torch

import checkpoint
import information
from data import Xylophone
from pairs import mirrored_noise
from score import VPSDE, FrozenModel
from toy import information as toy_information
from toy import run as toy_run
from toy.target import ExactEps, gaussian

SDE, RHO = VPSDE(), 0.8
TARGET = gaussian(RHO, SDE)
BASES = tuple(FrozenModel(ExactEps(TARGET, axis), SDE) for axis in (0, 1))


class Ratio(torch.nn.Module):
    """`scale` times the closed-form log-ratio as the pair term; repairs that say nothing of it."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def encode(self, x, y, t):
        return x, y

    def repair(self, x, y):
        return 0.3 * (x + y)[:, 0]

    def pair(self, x, y, t):
        return self.scale * TARGET.log_ratio(torch.cat([x, y], dim=1), t)


@pytest.mark.parametrize("lowest", [1e-3, 0.2])
def test_information_from_the_gradient_is_exact_for_the_true_log_ratio_and_less_for_any_other(
    lowest, generator, monkeypatch
):
    """I_t = -1/2 log(1 - alpha_t^4 rho^2); with s grad L for r, E[2 m r - r^2] = (2 s - s^2) E|grad L|^2."""
    monkeypatch.setattr(information, "BATCH", 4000)
    pairs = TARGET.sample(40_000, generator).double().split(1, dim=1)
    alpha = SDE.marginal(torch.tensor([lowest], dtype=torch.float64))[0].item()
    exact = -0.5 * math.log(1 - alpha**4 * RHO**2)
    for scale, share in ((1.0, 1.0), (0.5, 0.75), (1.5, 0.75)):
        estimate, error = information.mutual_information((*BASES, Ratio(scale)), pairs, (lowest, 1.0), seed=1)
        assert error < 0.03 * exact
        assert estimate == pytest.approx(share * exact, abs=3 * error)


def test_what_the_residual_explains_is_all_for_the_missing_noise_itself(bases, generator, monkeypatch):
    """Were r equal to eps - eps_base, it would explain everything, with cosine 1; r = 0 explains nothing."""
    models = checkpoint.load_run(bases)
    pair = Xylophone().batch(2, generator)
    monkeypatch.setattr(information, "LEVELS", (0.3,))
    for scale, expected in ((0.0, 0.0), (1.0, 1.0)):

        def missing(logit, vt, at, t, sde, scale=scale):
            noise = torch.Generator().manual_seed(9)
            eps = [mirrored_noise(len(x), x, noise) for x in (vt, at)]
            return tuple(scale * (e - m(x, t)).detach() for e, m, x in zip(eps, models, (vt, at), strict=False))

        monkeypatch.setattr(information, "residual_noise", missing)
        (row,) = information.by_level(models, pair, seed=9, device="cpu")
        for name in ("video", "audio"):
            assert row[f"{name}_explained"] == pytest.approx(expected, abs=1e-5)
            assert row[f"{name}_cosine"] == pytest.approx(expected, abs=1e-4)


def test_a_log_ratio_is_calibrated_and_three_times_it_is_not(generator):
    """Of x ~ N(1, 1) against N(-1, 1) the log-ratio is 2 x; D = sigmoid(6 x) is off by |D - sigmoid(2 x)|."""
    real, fake = (torch.randn(200_000, generator=generator) + mean for mean in (1, -1))
    x = torch.cat([real, fake])
    assert information.calibration_error(2 * real, 2 * fake) < 0.003
    off = (torch.sigmoid(6 * x) - torch.sigmoid(2 * x)).abs().mean().item()
    assert information.calibration_error(6 * real, 6 * fake) == pytest.approx(off, abs=0.003)


def test_a_briefly_trained_discriminator_finds_most_of_the_information_of_a_gaussian_pair(monkeypatch):
    """In two dimensions, I = -log(1 - rho^2)."""
    monkeypatch.setattr(toy_information, "PAIRS", 2000)
    monkeypatch.setattr(toy_run, "BATCH", 512)
    row = toy_information.estimate(2, RHO, seed=0, steps=300)
    assert row["exact"] == pytest.approx(-math.log(1 - RHO**2))
    assert 0.85 * row["exact"] < row["gradient"] < row["exact"] + 3 * row["gradient_error"]
    assert row["logit"] == pytest.approx(row["exact"], rel=0.15)
