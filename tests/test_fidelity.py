import pytest
import torch

import data
import fidelity
import hits
from data import Xylophone


def test_frechet_distance_of_known_gaussians(generator):
    """N(0, I) against N(m, 4 I) in 3 dimensions: |m|^2 + 3 (1 + 4 - 2 * 2)."""
    x = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    y = 2 * torch.randn(200_000, 3, generator=generator, dtype=torch.float64) + torch.tensor([1.0, 0.0, 2.0])
    assert fidelity.frechet(x, y) == pytest.approx(5 + 3, rel=0.02)
    assert fidelity.frechet(x, x) == pytest.approx(0, abs=1e-8)


def test_error_of_a_frechet_distance_is_that_of_the_mean_it_hangs_on(generator):
    """Of 400 draws of N(m, I) against N(0, I), |m| = 2: |m_hat|^2 has the standard deviation 2 |m| / sqrt(400)."""
    x, y = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (400, 100_000))
    x[:, 0] += 2
    assert fidelity.frechet_error(x, y, draws=400) == pytest.approx(2 * 2 / 20, rel=0.15)


def test_seam_is_the_jump_at_the_cut_over_the_change_before_it():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 11.0]).expand(5, 2, 6)
    assert fidelity.seam(x, 4, 2) == pytest.approx(7.0)
    assert fidelity.seam(x, 3, 2) == pytest.approx(1.0)
    assert fidelity.seam(x.transpose(1, 2), 4, 1) == pytest.approx(7.0)


def test_frechet_of_correlated_gaussians_matches_the_matrix_square_root(generator):
    A, B = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x, y = (torch.randn(50_000, 4, generator=generator, dtype=torch.float64) @ M for M in (A, B))
    S1, S2 = x.T.cov(), y.T.cov()
    cross = torch.linalg.eigvals(S1 @ S2).real.clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + S1.trace() + S2.trace() - 2 * cross
    assert fidelity.frechet(x, y) == pytest.approx(expected.item(), rel=1e-6)


def test_random_features_are_the_same_every_time_and_tell_noise_from_clips():
    video, _ = Xylophone().batch(400, torch.Generator().manual_seed(0), only="video")
    a, b, noisy = video[:200], video[200:], video[:200] + 0.2 * torch.randn(200, 3, 16, 32, 32)
    net = fidelity.RandomFeatures(3, 3)
    assert torch.equal(net(a), fidelity.RandomFeatures(3, 3)(a))
    assert fidelity.frechet(net(noisy), net(b)) > 5 * fidelity.frechet(net(a), net(b))


def test_total_variation_of_known_histograms():
    """Shares 1/2, 1/2 against 1/4, 3/4: half of 1/4 + 1/4; and all that lies above the last bin falls into it."""
    assert fidelity.total_variation([0, 1], [0, 1, 1, 1], 3) == pytest.approx(0.25)
    assert fidelity.total_variation([0, 0], [2, 7], 3) == 1
    assert fidelity.total_variation([2, 9], [3, 2], 3) == 0
    assert fidelity.total_variation([], [1], 3) == pytest.approx(0.5)


def test_gravity_is_read_off_the_flights_and_off_nothing_else():
    """The world's own clips give its g; played at another speed they do not, and a ball that hangs is not asked."""
    video, _ = Xylophone().batch(64, torch.Generator().manual_seed(0), only="video")
    seen = hits.see(video)
    g = fidelity.gravity(video, seen, 8)
    assert g.median().item() == pytest.approx(data.GRAVITY, rel=0.01) and len(g) > 64
    assert (g - data.GRAVITY).abs().quantile(0.9) < 0.1 * data.GRAVITY
    assert fidelity.gravity(video, seen, 16).median().item() > 2 * data.GRAVITY
    assert len(fidelity.gravity(video, [[] for _ in seen], 8)) == 0


def test_a_clip_with_a_frame_without_its_ball_is_found():
    """Every clip of the world shows its ball in every frame; of five, two lose it, one of them for a faint ghost."""
    video, _ = Xylophone().batch(64, torch.Generator().manual_seed(0), only="video")
    assert fidelity.without_ball(video) == 0
    video, sky = video[:5].clone(), round((1 - data.BAR_TOP) * 32)
    empty = video.new_tensor(data.BACKGROUND)[:, None, None] / 127.5 - 1
    video[1, :, 3, :sky] = empty
    video[2, :, 0, :sky] = empty + 0.3 * (video[2, :, 0, :sky] - empty)
    assert fidelity.without_ball(video) == pytest.approx(0.4)


def test_a_ball_that_moves_sideways_before_its_first_impact_is_found_and_one_in_flight_is_not():
    """Of four clips two are moved aside by 3/4 of a bar in a frame of the fall, one by 1/4, one after the impact."""
    video, _ = Xylophone().batch(256, torch.Generator().manual_seed(0), only="video")
    seen = hits.see(video)
    assert fidelity.without_plumb(video, seen, 8) == 0
    assert fidelity.without_plumb(video, [[] for _ in seen], 8) > 0.5  # flights are sideways
    places = hits.ball_column(video / 2 + 0.5)[:, 0].tolist()
    hung = torch.tensor(
        [(x, clip[0][1] + 0.5) for x, clip in zip(places, seen, strict=True) if clip and 0 < clip[0][1] < 7]
    )
    assert (hung[:, 0] - hung[:, 1]).abs().max() < 1e-3  # above the middle of the bar it will hit; an edge cuts a ball
    late = [k for k, clip in enumerate(seen) if clip and 1 < clip[0][0] < 1.2 and 1 < clip[0][1] < 6][:4]
    video, seen, sky = video[late].clone(), [seen[k] for k in late], round((1 - data.BAR_TOP) * 32)
    for clip, frame, pixels in ((0, 4, 3), (1, 0, -3), (2, 12, 3), (3, 4, 1)):
        video[clip, :, frame, :sky] = video[clip, :, frame, :sky].roll(pixels, 2)
    assert fidelity.without_plumb(video, seen, 8) == 0.5
    empty = video.new_tensor(data.BACKGROUND)[:, None, None] / 127.5 - 1
    video[:, :, 3:6, :sky] = empty
    video[1, :, 0] = video[1, :, 1]
    assert fidelity.without_plumb(video, seen, 8) == 0  # where there is no ball, none moves


def test_nearest_neighbours_find_a_repeated_and_a_memorised_clip(generator):
    x, training = torch.randn(8, 2, 50, generator=generator), torch.randn(20, 2, 50, generator=generator)
    assert fidelity.nearest(x, training) == pytest.approx(
        sorted((a - training).square().mean((1, 2)).sqrt().min().item() for a in x)[3], rel=1e-4
    )
    assert fidelity.nearest(training[3:9] + 0.01, training) == pytest.approx(0.01, rel=0.01)
    assert fidelity.nearest(torch.cat([x, x])) == pytest.approx(0, abs=1e-3) and fidelity.nearest(x) > 0.5
