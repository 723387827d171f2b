import math

import pytest
import torch
from torch.testing import assert_close

import data
import hits
import media
from data import Xylophone

WORLD = Xylophone()


@pytest.fixture(scope="module")
def clips():
    return WORLD.render(400, torch.Generator().manual_seed(0))


def test_shapes_and_ranges(generator):
    frames, waveform, truth = WORLD.render(3, generator)
    assert frames.shape == (3, 16, 32, 32, 3) and frames.dtype == torch.uint8
    assert waveform.shape == (3, 32_000) and waveform.abs().max() <= 1 and len(truth) == 3
    video, audio = WORLD.batch(3, generator)
    assert video.shape == (3, 3, 16, 32, 32) and audio.shape == (3, 1, 64, 128)
    for x in (video, audio):
        assert x.min() >= -1 and x.max() <= 1


def test_a_seed_gives_the_same_clips():
    (v1, a1), (v2, a2) = (WORLD.batch(5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(v1, v2) and torch.equal(a1, a2)
    alone = WORLD.batch(5, torch.Generator().manual_seed(7), only="video")[0]
    assert torch.equal(alone, v1)
    assert not torch.equal(v1, WORLD.batch(5, torch.Generator().manual_seed(8))[0])


def test_hits_number_none_to_four_and_keep_their_distance(clips):
    counts = [len(clip) for clip in clips[2]]
    assert set(counts) == {0, 1, 2, 3, 4}
    for clip in clips[2]:
        times = [hit[0] for hit in clip]
        assert all(0.1 <= t <= 1.8 for t in times)
        assert all(data.FLIGHT[0] - 1e-5 <= b - a for a, b in zip(times, times[1:], strict=False))


def test_loudness_is_the_energy_of_the_impact(clips):
    """After a flight of T seconds the ball lands at v = g T / 2, and sounds as (v / v_max)^2."""
    for clip in clips[2]:
        for before, after in zip(clip, clip[1:], strict=False):
            speed = data.GRAVITY * (after[0] - before[0]) / 2
            assert after[2] == pytest.approx((speed / data.SPEED_MAX) ** 2, rel=1e-3)


def test_the_ball_falls_under_gravity(clips):
    """Second differences of its height are -g dt^2 wherever it has been in free flight for three frames."""
    height = hits.ball_height((media.to_video(clips[0]) + 1) / 2)
    found = []
    for ball, truth in zip(height, clips[2], strict=True):
        for before, after in zip(truth, truth[1:], strict=False):
            k = math.ceil(before[0] * WORLD.fps)
            if (k + 2) / WORLD.fps < after[0]:
                found.append((ball[k] - 2 * ball[k + 1] + ball[k + 2]).item() * WORLD.fps**2)
    assert len(found) > 100
    assert sum(found) / len(found) == pytest.approx(-data.GRAVITY, rel=0.02)


def test_a_note_sounds_at_its_pitch():
    spectrum = torch.fft.rfft(WORLD.notes * torch.hann_window(WORLD.samples), dim=1).abs()
    peaks = spectrum.argmax(1) * media.SAMPLE_RATE / WORLD.samples
    assert_close(peaks, torch.tensor(data.SCALE), atol=0.6, rtol=0)


def test_marginals_say_nothing_of_the_pairing(clips):
    """Bars are uniform and independent of the hit's time, so neither modality can guess the other's draw."""
    bars = torch.tensor([hit[1] for clip in clips[2] for hit in clip]).float()
    times = torch.tensor([hit[0] for clip in clips[2] for hit in clip])
    assert torch.bincount(bars.long(), minlength=8).min() > 0.08 * len(bars)
    assert abs(torch.stack([bars, times]).corrcoef()[0, 1].item()) < 0.1
