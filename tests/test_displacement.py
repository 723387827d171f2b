import pytest
import torch
from torch.testing import assert_close

import media
from data import Xylophone
from displacement import FLOOR, displacement


def test_displacement_is_most_of_the_error_of_a_ball_out_of_place_and_next_to_nothing_of_grain(generator, monkeypatch):
    def clips(dx: float = 0.0, dy: float = 0.0) -> torch.Tensor:
        """The same four clips, the ball moved by so many pixels."""
        with monkeypatch.context() as patched:
            hypot = torch.hypot
            patched.setattr(torch, "hypot", lambda x, y: hypot(x - dx / 32, y - dy / 32))
            return Xylophone().batch(4, torch.Generator().manual_seed(0), "video")[0]

    x0 = clips()
    for moved in (clips(dx=0.3), clips(dy=0.3), clips(dy=-0.3)):
        share = displacement(moved - x0, x0) / (moved - x0).square().flatten(1).sum(1)
        assert (share > 0.55).all()
    grain = torch.randn(x0.shape, generator=generator)
    assert (displacement(grain, x0) < 0.01 * grain[0].numel()).all()
    assert_close(displacement(3 * grain, x0), 9 * displacement(grain, x0))


@pytest.mark.parametrize("axis", [3, 4])
def test_displacement_of_a_slope_is_all_of_its_error_and_nothing_of_an_error_across_it(axis):
    """x0 = 0.3 y, drawn d pixels too low: the error is -0.3 d everywhere, and of either sign in turn it is no shift."""
    ramp = 0.3 * torch.arange(16.0, dtype=torch.float64)
    x0 = (ramp[:, None] if axis == 3 else ramp).expand(2, 3, 4, 16, 16)
    error = torch.full_like(x0, -0.3 * 0.2)
    whole = error.square().flatten(1).sum(1)
    energy = 3 * 64 * 0.3**2  # of a window's slopes
    assert_close(displacement(error, x0), whole * energy / (energy + FLOOR))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)
    assert_close(displacement(error * signs, x0), torch.zeros_like(whole))


def test_displacement_of_a_sound_is_most_of_the_error_of_an_onset_out_of_place_and_not_of_grain(generator):
    """The same clips a tenth of a column later, seen from the spectrogram between the two."""
    world = Xylophone()
    now, later = (media.log_mel(world.render(8, torch.Generator().manual_seed(1), s)[1]) for s in (0.0, 0.0015625))
    error, between = later - now, (now + later) / 2
    share = displacement(error, between) / error.square().flatten(1).sum(1)
    assert (share > 0.3).all() and share.mean() > 0.5
    grain = error.std() * torch.randn(error.shape, generator=generator)
    assert (displacement(grain, between) < 0.01 * grain.square().flatten(1).sum(1)).all()


def test_displacement_leaves_the_best_estimate_where_its_slopes_are_those_of_the_estimate_and_not_of_the_truth():
    """x_0 is one of two pictures and x_t tells nothing: the mean is best, and the gradient of Q is 0 there."""
    slope = torch.linspace(-4, 4, 16, dtype=torch.float64)
    here, there = (torch.sigmoid(k * (slope - d)).expand(1, 3, 2, 16, 16) for k, d in ((1.0, -0.5), (3.0, 0.5)))

    def gradient(of_truth: bool) -> torch.Tensor:
        mean = ((here + there) / 2).requires_grad_()
        slopes = (here, there) if of_truth else (mean.detach(),) * 2
        errors = (displacement(mean - x0, g) for x0, g in zip((here, there), slopes, strict=True))
        return torch.autograd.grad(sum(errors).sum(), mean)[0]

    assert gradient(of_truth=False).abs().max() < 1e-12
    assert gradient(of_truth=True).abs().max() > 0.01
