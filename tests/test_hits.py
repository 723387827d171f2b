import pytest
import torch

import hits
import media
from data import Xylophone

WORLD = Xylophone()


@pytest.fixture(scope="module")
def clips():
    frames, waveform, truth = WORLD.render(500, torch.Generator().manual_seed(1))
    return hits.see(media.to_video(frames)), hits.hear(media.log_mel(waveform)), truth


def test_detectors_find_the_true_hits(clips):
    seen, heard, truth = clips
    for found in (seen, heard):
        score = hits.agreement(found, truth)
        assert score["hit_f1"] >= 0.995 and score["pitch_accuracy"] >= 0.995
        assert score["onset_error_ms"] < 3


def test_grain_of_a_skip_of_0_07_moves_onsets_and_that_of_0_02_does_not(generator):
    """The most that a skip of s keeps of the noise (unet.py) is r s^2 / (s^2 + r^2) at r = sigma / alpha = s: s / 2."""
    _, waveform, truth = WORLD.render(500, torch.Generator().manual_seed(1))
    audio = media.log_mel(waveform)
    noise = torch.randn(audio.shape, generator=generator)
    clean, fine, coarse = (
        hits.agreement(hits.hear(audio + s / 2 * noise), truth)["onset_error_ms"] for s in (0, 0.02, 0.07)
    )
    assert fine < 1.05 * clean and coarse > 1.15 * clean


def test_shuffled_pairs_score_the_chance_of_the_worlds_statistics(clips):
    """The same score computed from the true hits alone, over several shifts, without any detector."""
    seen, heard, truth = clips
    chance, measured = [], []
    for shift in range(1, 6):
        for pair, rows in (((truth, truth), chance), ((seen, heard), measured)):
            score = hits.agreement(pair[0], pair[1][shift:] + pair[1][:shift])
            rows.append(score["hit_f1"] * score["pitch_accuracy"])
    assert sum(measured) / 5 == pytest.approx(sum(chance) / 5, abs=0.005)
    assert sum(chance) / 5 == pytest.approx(0.345 / 8, abs=0.01)  # about a third match in time, one in eight on the bar


def test_matching_is_one_to_one_and_within_the_window():
    seen, heard = [(0.5, 1, 1.0), (0.6, 2, 1.0)], [(0.58, 2, 1.0), (1.5, 1, 1.0)]
    assert hits.match(seen, heard, 0.125) == [(seen[1], heard[0])]
    assert hits.match(seen, heard, 0.01) == []


def test_agreement_by_hand():
    seen = [[(0.5, 1, 1.0), (1.0, 2, 1.0)], []]
    heard = [[(0.52, 1, 1.0), (1.04, 3, 1.0)], [(0.3, 0, 1.0)]]
    score = hits.agreement(seen, heard)
    assert score["hit_f1"] == pytest.approx(4 / 5)
    assert score["pitch_accuracy"] == pytest.approx(1 / 2)
    assert 20 <= score["onset_error_ms"] <= 40.1


def test_a_note_that_swells_while_it_rings_is_not_struck_again_and_a_quiet_strike_over_it_is():
    ringing = WORLD.notes[3]  # two seconds of one bar, struck at time 0
    time = torch.arange(len(ringing)) / media.SAMPLE_RATE
    swelling = ringing * (1 + 0.25 * torch.sin(2 * torch.pi * 6 * time))  # 2 dB up and down, six times a second
    again = ringing.clone()
    again[8000:] += 0.3 * ringing[:-8000]  # the same bar once more, 0.5 s later
    silence = torch.zeros(3200)
    waves = torch.stack([torch.cat([silence, x])[: WORLD.samples] for x in (ringing, swelling, again)])
    assert [len(found) for found in hits.hear(media.log_mel(waves))] == [1, 1, 2]


def test_silence_and_stillness_hold_no_hits():
    assert hits.hear(torch.full((2, 1, 64, 128), -1.0)) == [[], []]
    dark = torch.full((2, 3, 16, 32, 32), -0.9)
    assert hits.see(dark) == [[], []]
