"""Judging sync: how well the sound of a clip belongs to its picture.

    score(v, a) = mean of pair(v_t, a_t, t) over LEVELS and draws of the noise        nats

`pair` estimates log q_t(v, a) / (q_t(v) q_t(a)): above 0 the two are likelier together than apart. On many clips:

    auc          P(score of a real clip > score of a wrong one), ties by half: sound of another clip, or shifted
    retrieval    the rank of the right sound among GROUP, given the picture
    curve        the mean score against the shift of the sound

Used by evaluate.py; `--score CLIP...` scores files.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import media
from data import Xylophone
from score import VPSDE

LEVELS = (0.1, 0.2, 0.3, 0.4)  # where a clip shows all it has and the discriminator has been trained well
DRAWS = 4  # at each level, to score a file
GROUP, BATCH = 100, 100
QUARTER = round(0.25 * media.SAMPLE_RATE / media.HOP)  # spectrogram columns of 250 ms
SHIFTS = (-32, -24, -16, -12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # columns of 15.6 ms


def encodings(discriminator: nn.Module, sde: VPSDE, video: Tensor, audio: Tensor, draws: int, seed: int = 0):
    """(v, a, t) per draw and noise level: features of the clips at that level. The noise is the same in each call."""
    generator = torch.Generator().manual_seed(seed)
    for level in LEVELS * draws:
        t = torch.full((len(video),), level, device=video.device)
        vt, at = (sde.perturb(x, t, sde.prior(x.shape, generator, x.device)) for x in (video, audio))
        yield *discriminator.encode(vt, at, t), t


@torch.no_grad()
def log_ratios(discriminator: nn.Module, sde: VPSDE, video: Tensor, audio: Tensor, draws: int = 1) -> Tensor:
    """`pair` (draws, levels, B) of clips video (B, 3, T, H, W), audio (B, 1, n_mels, L); its mean is their score."""
    parts = []
    for pairs in zip(video.split(BATCH), audio.split(BATCH), strict=True):
        logits = [discriminator.pair(v, a, t) for v, a, t in encodings(discriminator, sde, *pairs, draws)]
        parts.append(torch.stack(logits).unflatten(0, (draws, len(LEVELS))))
    return torch.cat(parts, dim=2)


def shift(audio: Tensor, columns: int) -> Tensor:
    """Audio (B, 1, n_mels, L) delayed by so many spectrogram columns (< 0: advanced), its end column held."""
    padded = F.pad(audio[:, 0], (max(columns, 0), max(-columns, 0)), mode="replicate")[:, None]
    return padded[..., max(-columns, 0) :][..., : audio.shape[-1]]


def auc(real: Tensor, wrong: Tensor) -> float:
    """P(real > wrong) for scores (n,) and (m,), ties by half."""
    difference = real[:, None] - wrong
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()


@torch.no_grad()
def retrieval(discriminator: nn.Module, sde: VPSDE, video: Tensor, audio: Tensor) -> Tensor:
    """The rank (B,), from 1, of each picture's own sound among those of all B clips; ties count as half above it."""
    scores = 0
    for v, a, t in encodings(discriminator, sde, video, audio, draws=1):
        rows = [discriminator.pair(v, a.roll(-k, 0), t) for k in range(len(v))]
        scores = scores + torch.stack(rows)  # (k, i): picture i with sound i + k
    return 1 + (scores[1:] > scores[0]).sum(0) + 0.5 * (scores[1:] == scores[0]).sum(0)


def judge(discriminator: nn.Module, sde: VPSDE, video: Tensor, audio: Tensor) -> dict:
    """AUCs, retrieval in groups of GROUP clips (the last, smaller one left out), and the curve, of real clips."""
    with tqdm(total=len(SHIFTS) + 1 + max(1, len(video) // GROUP), desc="sync") as bar:

        def scored(sound: Tensor) -> Tensor:
            bar.update()
            return log_ratios(discriminator, sde, video, sound).mean((0, 1))

        curve = {k: scored(shift(audio, k)) for k in SHIFTS}
        shuffled = scored(audio.roll(1, 0))
        ranks = []
        for pairs in zip(video.split(GROUP), audio.split(GROUP), strict=True):
            if len(pairs[0]) == min(GROUP, len(video)):
                ranks.append(retrieval(discriminator, sde, *pairs))
                bar.update()
    ranks, column = torch.cat(ranks), 1000 * media.HOP / media.SAMPLE_RATE
    return {
        "auc_shuffled": auc(curve[0], shuffled),
        "auc_shift_250ms": auc(curve[0], torch.cat([curve[QUARTER], curve[-QUARTER]])),
        "retrieval_top1": (ranks <= 1).float().mean().item(),
        "retrieval_top5": (ranks <= 5).float().mean().item(),
        "retrieval_among": min(GROUP, len(video)),
        "curve": [{"shift_ms": k * column, "score": scores.mean().item()} for k, scores in curve.items()],
    }


def score_files(discriminator: nn.Module, sde: VPSDE, paths: list[Path], device: str) -> list[dict]:
    """Score and standard error of each media file, over all its windows as long as a clip, end to end."""
    world, rows = Xylophone(discriminator.video_shape[-1]), []
    for path in paths:
        try:
            frames, waveform = media.read_clip(path, world.fps, world.size)
            count = min(len(frames) // world.frames, len(waveform) // world.samples)
            if not count:
                raise ValueError(f"it is shorter than {world.seconds:g} s")
        except ValueError as error:
            raise ValueError(f"--score {path}: {error}") from error
        video = media.to_video(frames[: count * world.frames].unflatten(0, (count, -1)))
        audio = media.log_mel(waveform[: count * world.samples].unflatten(0, (count, -1)))
        nats = log_ratios(discriminator, sde, video.to(device), audio.to(device), DRAWS).mean(2)  # (draws, levels)
        error = (nats.var(0).mean() / nats.numel()).sqrt()  # of the draws: the levels are fixed
        rows.append({"clip": str(path), "windows": count, "nats": nats.mean().item(), "error": error.item()})
    return rows
