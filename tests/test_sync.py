import math

import pytest
import torch
from torch.testing import assert_close

import checkpoint
import sync
from data import Xylophone
from score import VPSDE

SDE = VPSDE()


class Closeness(torch.nn.Module):
    """The pair term of two states: minus the square of what lies between their noisy values, times a scale."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def encode(self, video, audio, t):
        return video, audio

    def pair(self, v, a, t):
        return -self.scale * (v - a).square().flatten(1).sum(1)


def test_auc_of_two_normal_scores_is_the_closed_form_and_ties_count_half(generator):
    real, wrong = torch.randn(4000, generator=generator) + 1, torch.randn(4000, generator=generator)
    assert sync.auc(real, wrong) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.01)
    assert sync.auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0])) == 0.75


def test_shifted_sound_is_late_or_early_by_so_many_columns():
    audio = torch.arange(10.0).expand(1, 1, 2, 10)
    assert sync.shift(audio, 3)[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert sync.shift(audio, -3)[0, 0, 1].tolist() == [3, 4, 5, 6, 7, 8, 9, 9, 9, 9]
    assert torch.equal(sync.shift(audio, 0), audio)


def test_the_own_sound_is_first_where_scores_tell_and_in_the_middle_where_they_do_not(generator):
    clips = 100 * torch.randn(20, 1, generator=generator)
    assert sync.retrieval(Closeness(), SDE, clips, clips).tolist() == [1.0] * 20
    assert sync.retrieval(Closeness(0.0), SDE, clips, clips).tolist() == [10.5] * 20
    others = clips.roll(1, 0)
    assert sync.retrieval(Closeness(), SDE, clips, others).min() > 1


def test_log_ratios_are_those_of_each_level_with_noise_of_its_own_and_the_same_noise_again():
    """E|v_t - a_t|^2 = alpha^2 |v - a|^2 + 2 sigma^2."""
    video, audio = torch.full((sync.BATCH + 1, 1), 2.0), torch.full((sync.BATCH + 1, 1), 0.5)
    ratios = sync.log_ratios(Closeness(), SDE, video, audio, draws=40)
    assert ratios.shape == (40, len(sync.LEVELS), sync.BATCH + 1)
    assert torch.equal(ratios, sync.log_ratios(Closeness(), SDE, video, audio, draws=40))
    alpha, sigma = SDE.marginal(torch.tensor(sync.LEVELS))
    assert_close(-ratios.mean((0, 2)), alpha**2 * 1.5**2 + 2 * sigma**2, rtol=0.05, atol=0)


def test_the_shipped_discriminator_hears_what_is_late_or_of_another_clip():
    discriminator = checkpoint.load_run(checkpoint.PRETRAINED)[2]
    report = sync.judge(discriminator, SDE, *Xylophone().batch(20, torch.Generator().manual_seed(77)))
    assert report["auc_shuffled"] > 0.98 and report["auc_shift_250ms"] > 0.95
    assert report["retrieval_among"] == 20 and report["retrieval_top5"] >= report["retrieval_top1"] > 0.75
    assert max(report["curve"], key=lambda row: row["score"])["shift_ms"] == 0
