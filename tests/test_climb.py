import math

import pytest
import torch
from torch.testing import assert_close

import guidance
from climb import AGAIN, LAST, WEAK, climb, levels
from score import VPSDE

SDE = VPSDE()


def mixture_log_q(x, t, modes, spread):
    """log q_t(x) of sum_i weight_i N(place_i, spread^2), for x (B, 1): `modes` is ((weight, place), ...)."""
    alpha, sigma = (value[:, None] for value in SDE.marginal(t))
    variance = (alpha * spread) ** 2 + sigma**2
    parts = [math.log(w) - (x - alpha * m) ** 2 / (2 * variance) - variance.log() / 2 for w, m in modes]
    return torch.logsumexp(torch.stack(parts), 0)[:, 0]


def exact_eps(modes, spread):
    def eps(states, t):
        with torch.enable_grad():
            x = states[0].detach().requires_grad_()
            (score,) = torch.autograd.grad(mixture_log_q(x, t, modes, spread).sum(), x)
        return (SDE.score_to_eps(score, t),)

    return eps


def climbed(modes, spread, n=20_000, steps=13, first=0.287):
    """Clips of the mixture noised to t = first, m before the last looks at it, and what is returned: (n,) each."""
    generator = torch.Generator().manual_seed(0)
    weights, places = torch.tensor(modes, dtype=torch.float64).T
    start = places[torch.multinomial(weights, n, True, generator=generator)][:, None]
    start = start + spread * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    t = torch.full((n,), first, dtype=torch.float64)
    xt = SDE.perturb(start, t, torch.randn(n, 1, generator=generator, dtype=torch.float64))
    means = [m for (m,) in climb(exact_eps(modes, spread), (xt,), SDE, levels(first, steps), generator)]
    return start[:, 0], means[-1 - AGAIN][:, 0], means[-1][:, 0]


def test_levels_fall_by_equal_factors_and_end_at_weak_noise():
    times = levels(0.3, 13)
    falling, weak = times[:-AGAIN], times[-AGAIN:]
    assert len(times) == 13 and times[0] == 0.3 and falling[-1].item() == pytest.approx(LAST)
    assert_close(falling[1:] / falling[:-1], torch.full((10,), (LAST / 0.3) ** (1 / 10), dtype=torch.float64))
    assert weak.tolist() == [WEAK] * AGAIN
    assert levels(0.3, 1).tolist() == [0.3] and len(levels(0.3, 0)) == 0
    assert levels(0.05, 4).tolist() == [0.05, 0.05, WEAK, WEAK] and levels(0.01, 4).tolist() == [0.01] * 4


def test_a_step_is_the_gradient_of_the_log_density_seen_through_noise():
    """E x0_hat(alpha m + sigma z) - m = r^2 grad_m E log q_t(alpha m + sigma z), over z and -z: exactly."""
    modes, spread = ((0.3, -1.0), (0.7, 1.2)), 0.1
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(500, 1, generator=generator, dtype=torch.float64)
    z = torch.cat([z, -z])
    for level in (0.1, 0.3, 0.6):
        t = torch.full((len(z),), level, dtype=torch.float64)
        alpha, sigma = SDE.marginal(t)
        m = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        xt = SDE.perturb(m.expand(len(z), 1), t, z)
        (slope,) = torch.autograd.grad(mixture_log_q(xt, t, modes, spread).mean(), m)
        x0_hat = SDE.eps_to_x0(xt.detach(), exact_eps(modes, spread)((xt,), t)[0], t)
        assert_close((x0_hat - m).mean().detach(), (sigma / alpha)[0] ** 2 * slope)


def test_within_one_mode_the_spread_shrinks_as_its_closed_form():
    """x0_hat of N(0, spread^2) is linear: c x_t with c = alpha spread^2 / (alpha^2 spread^2 + sigma^2)."""
    spread, first, steps = 0.5, 0.287, 13
    variance = 0.0
    for i, t in enumerate(levels(first, steps)):
        alpha, sigma = SDE.marginal(t)
        c = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        share = 2 / (i + 2) if i < steps - AGAIN else 0
        before = variance if i else spread**2
        kept = 1 - share + share * c * alpha
        variance = kept**2 * before + (share * c * sigma) ** 2
    variance = (c * alpha) ** 2 * variance + (c * sigma) ** 2 / AGAIN
    _, _, end = climbed(((1.0, 0.0),), spread, n=100_000)
    assert end.var().item() == pytest.approx(variance.item(), rel=0.02)
    assert end.std().item() < 0.5 * spread


def test_modes_far_apart_keep_their_share_and_near_ones_do_not():
    """Climbing is for what is left once a clip is settled: of modes that noise still hides the larger takes all."""
    start, m, end = climbed(((0.3, -7.0), (0.7, 7.0)), 0.1)
    assert ((start < 0) == (end < 0)).all() and (m.abs() - 7).abs().max() < 0.1
    alpha, sigma = SDE.marginal(torch.tensor(WEAK, dtype=torch.float64))
    c = alpha * 0.1**2 / (alpha**2 * 0.1**2 + sigma**2)  # the last looks leave of their noise what x0_hat does
    left = (c * alpha * m.abs().std()) ** 2 + (c * sigma) ** 2 / AGAIN
    assert (end.abs() - 7).square().mean().item() == pytest.approx(left.item(), rel=0.03)
    start, _, end = climbed(((0.3, -0.2), (0.7, 0.2)), 0.05)
    assert (end < 0).double().mean() < 0.1


def test_the_last_steps_climb_and_as_many_calls_are_made():
    seen = []

    def eps(states, t):
        seen.append(t[0].item())
        return tuple(torch.zeros_like(x) for x in states)

    states = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    for below, solved in ((0.0, 25), (0.3, 18)):
        seen.clear()
        yielded = list(guidance.denoise(eps, states, SDE, 25, "dpm++2m-churn", climb_below=below))
        assert len(seen) == len(yielded) == 25
        assert seen == pytest.approx(guidance.time_grid(25, SDE, below)[:-1].tolist())
        assert sum(t > below for t in seen) == solved
    assert seen[18:] == pytest.approx(levels(0.3, 7).tolist())


@pytest.mark.parametrize("climb_below", [0.0, 0.05, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 25])
def test_the_grid_of_a_climb_starts_at_1_and_is_uniform_in_the_root_of_t_down_to_where_it_climbs(steps, climb_below):
    grid = guidance.time_grid(steps, SDE, climb_below)
    assert len(grid) == steps + 1 and grid[0] == 1 and grid[-1] == SDE.t_min
    solver = grid[grid > climb_below]
    assert bool((grid.diff() <= 0).all()) and bool((solver.diff() < 0).all())
    if climb_below < 1 and climb_below in grid:
        roots = torch.cat([solver, grid.new_tensor([climb_below])]).sqrt()
        assert_close(roots.diff(), torch.full_like(solver, (climb_below**0.5 - 1) / len(solver)))


def test_a_grid_that_ends_without_noise_needs_no_climb():
    """And one that is given climbs at its own levels."""
    seen = []

    def eps(states, t):
        seen.append(t[0].item())
        return tuple(torch.ones_like(x) for x in states)

    start, grid = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    solved, climbed = (
        list(guidance.denoise(eps, (start,), SDE, 2, "ddim", grid=grid, climb_below=t)) for t in (0, 0.6)
    )
    assert seen == [1.0, 0.5] * 2
    half = torch.full((1,), 0.5, dtype=torch.float64)
    assert_close(solved[-1][0], SDE.eps_to_x0(solved[0][0], torch.ones_like(start), half))
    assert_close(climbed[-1][0], solved[-1][0])


def test_what_is_returned_is_the_mean_of_the_last_estimates_alone_all_of_one_state():
    """x0_hat = t + x_t / alpha_t: noise is not taken away, so that what each step saw can be told."""
    seen, generator = [], torch.Generator().manual_seed(0)

    def eps(states, t):
        x0_hat = t[:, None] + states[0] / SDE.marginal(t)[0][:, None]
        seen.append(x0_hat)
        return (SDE.x0_to_eps(states[0], x0_hat, t),)

    start = torch.zeros(4, 1, dtype=torch.float64)
    *_, before, first, last = (m for (m,) in climb(eps, (start,), SDE, levels(0.3, 13), generator))
    assert AGAIN == 2
    assert_close(first, seen[-2])
    assert_close(last, (seen[-2] + seen[-1]) / 2)
    replay = torch.Generator().manual_seed(0)
    *_, a, b = (SDE.prior((4, 1), replay, "cpu", torch.float64) for _ in range(12))
    alpha, sigma = SDE.marginal(torch.tensor(WEAK, dtype=torch.float64))
    assert_close(last, before + WEAK + sigma / alpha * (a + b) / 2)


def test_two_grids_do_not_climb():
    grids = (guidance.time_grid(3, SDE),) * 2
    with pytest.raises(ValueError, match="climb_below goes with one time grid, not with two"):
        next(
            guidance.denoise(
                lambda states, t: states, (torch.zeros(1), torch.zeros(1)), SDE, 3, grid=grids, climb_below=0.3
            )
        )


def test_the_state_that_a_solver_has_reached_starts_the_climb(generator):
    """Its first estimate is that of the very state, noise and all: with one step left the clip is its x0_hat."""
    modes, spread = ((1.0, 0.3),), 0.5
    start = (torch.randn(4, 1, generator=generator, dtype=torch.float64),)
    *_, solved, climbed = guidance.denoise(exact_eps(modes, spread), start, SDE, 10, "ddim", climb_below=0.1)
    t = torch.full((4,), 0.1, dtype=torch.float64)
    assert_close(climbed[0], SDE.eps_to_x0(solved[0], exact_eps(modes, spread)(solved, t)[0], t))
