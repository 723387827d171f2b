"""Seeing and hearing the hits of the Xylophone world, and matching one against the other.

A hit is (time in s, bar, strength). In the picture a struck bar lights up; the frame says which eighth of a second,
and the ball's fall, h(s) = h1 - v s - g/2 s^2 from the last frame before the impact, says when within it. In the
spectrogram a hit is a sudden gain in amplitude, whose shape over the mel bands is compared with each bar's own note.

    hit_f1 = 2 matches / (hits seen + hits heard)     matches: one to one, at most one video frame apart
    pitch_accuracy = share of matches whose bars agree

Used by evaluate.py, sample.py; the detectors see only video and audio, never the truth.
"""

import torch
from torch import Tensor

import data
import media

Hit = tuple[float, int, float]


def see(video: Tensor, fps: int = 8) -> list[list[Hit]]:
    """Impacts in video (B, 3, T, H, W) in [-1, 1]: bars whose glow rises by more than 0.28 against its known decay."""
    picture = (video.clamp(-1, 1).cpu().float() + 1) / 2
    rise = rises(picture)
    rows = picture[:, :, :, (rise > 0.09) & (rise < data.BAR_TOP - 0.02)].mean(3)  # (B, 3, T, W)
    colour = rows.unflatten(3, (len(data.SCALE), -1)).mean(4)  # (B, 3, T, bars)
    unlit = 0.55 * torch.tensor(data.PALETTE).T[:, None] / 255  # (3, 1, bars)
    glow = ((colour - unlit) * (1 - unlit)).sum(1) / (1 - unlit).square().sum(0)  # (B, T, bars): 0 unlit, 1 white
    decay = torch.exp(torch.tensor(-1 / fps / data.GLOW_DECAY))
    gain = glow[:, 1:] - decay * glow[:, :-1].clamp(min=0)
    ball = ball_height(picture)
    clips = []
    for clip in range(len(video)):
        found = []
        for k, bar in (gain[clip] > 0.28).nonzero().tolist():
            strength = gain[clip, k, bar].item()
            rivals = gain[clip, max(k - 1, 0) : k + 2, bar]  # one impact may brighten a bar over two frames
            if strength >= rivals.max().item():
                found.append((k / fps + fall_time(ball[clip], k, 1 / fps), bar, strength))
        clips.append(sorted(found))
    return clips


def ball_cover(picture: Tensor) -> Tensor:
    """How much of each pixel of picture (B, 3, T, H, W) the ball covers, 0 to 1: (B, T, H, W), 0 from the bars down."""
    background, ball = (torch.tensor(c).float() / 255 for c in (data.BACKGROUND, data.BALL))
    towards = (ball - background) / (ball - background).square().sum()
    cover = torch.einsum("bcthw,c->bthw", picture - background[:, None, None, None], towards)
    return torch.where(rises(picture)[:, None] > data.BAR_TOP, cover, torch.zeros(())).clamp(0, 1)


def rises(picture: Tensor) -> Tensor:
    """Height (H,) of each row's middle, in picture heights from below."""
    height = picture.shape[3]
    return 1 - (torch.arange(height) + 0.5) / height


def solid(cover: Tensor) -> Tensor:
    """Without the pixels of which a ball covers less than 0.3: grain, which would draw a centroid to the middle."""
    return cover * (cover > 0.3)


def ball_height(picture: Tensor) -> Tensor:
    """Height (B, T) of the ball above contact, in picture heights: the centroid of its pixels above the bars."""
    cover = solid(ball_cover(picture))
    weight = cover.sum((2, 3))
    centre = (cover.sum(3) * rises(picture)).sum(2) / weight.clamp(min=1e-6)
    return (centre - data.BAR_TOP - data.RADIUS).clamp(min=0)


def ball_column(picture: Tensor) -> Tensor:
    """Place (B, T) of the ball along the row of bars, in bars from the left: the centroid of its pixels above them."""
    cover = solid(ball_cover(picture)).sum(2)
    middles = (torch.arange(cover.shape[2]) + 0.5) * len(data.SCALE) / cover.shape[2]
    return (cover * middles).sum(2) / cover.sum(2).clamp(min=1e-6)


def fall_time(ball: Tensor, k: int, step: float) -> float:
    """Seconds s from frame k to the impact, from the heights at frames k - 1 and k: h1 = v s + g/2 s^2."""
    if k == 0:
        return step / 2
    g, h1 = data.GRAVITY, ball[k].item()
    v = (ball[k - 1].item() - h1) / step + g * step / 2  # downwards, at frame k
    return min(max((-v + (v * v + 2 * g * h1) ** 0.5) / g, 0.0), step)


EARLY = 0.0133  # s by which the spectrogram's 64 ms window shows an onset ahead of time, measured on rendered clips
EDGE = 0.08  # s at the end of a clip in which the window sees the sound mirrored: no onset is counted there


def templates() -> Tensor:
    """The amplitude of each bar's note over the mel bands, 30 ms after it is struck, with unit norm: (bars, n_mels)."""
    notes = data.Xylophone().notes
    spectrum = amplitude(media.log_mel(torch.cat([torch.zeros(len(notes), 8000), notes], dim=1)))[:, :, 34]
    return spectrum / spectrum.norm(dim=1, keepdim=True)


def amplitude(audio: Tensor) -> Tensor:
    """Log-mel audio (B, 1, n_mels, L) -> linear amplitude (B, n_mels, L), the floor counted as silence."""
    decibels = (1 - audio[:, 0].clamp(-1, 1).cpu().float()) / 2 * media.FLOOR_DB
    return 10 ** (decibels / 20) - 10 ** (media.FLOOR_DB / 20)


def hear(audio: Tensor) -> list[list[Hit]]:
    """Onsets in log-mel audio (B, 1, n_mels, L): peaks of the amplitude gained within 62 ms, at least 0.2 s apart.

    Only bands whose amplitude at least doubles count: a ringing note may swell by a decibel or two without a strike.
    """
    sound, notes, column = amplitude(audio), templates(), media.HOP / media.SAMPLE_RATE
    before, after = sound[:, :, :-4], sound[:, :, 4:]
    gain = (after - before) * (after > 2 * before)  # (B, n_mels, L - 4), centred on column l + 2
    flux = gain.square().sum(1).sqrt()
    apart = round(0.2 / column) // 2
    flux[:, flux.shape[1] - round(EDGE / column) :] = 0
    peaks = torch.nn.functional.max_pool1d(flux[:, None], 2 * apart + 1, 1, apart)[:, 0]
    clips = []
    for clip in range(len(audio)):
        found = []
        for l in ((flux[clip] == peaks[clip]) & (flux[clip] > 0.18)).nonzero()[:, 0].tolist():
            rise = (sound[clip, :, min(l + 5, sound.shape[2] - 1)] - sound[clip, :, max(l - 1, 0)]).clamp(min=0)
            near = flux[clip, max(l - 2, 0) : l + 3]  # the peak's centroid, finer than a column
            shift = (near * torch.arange(len(near))).sum() / near.sum() + max(l - 2, 0) + 2
            found.append((shift.item() * column + EARLY, int((notes @ rise).argmax()), flux[clip, l].item()))
        clips.append(found)
    return clips


def match(seen: list[Hit], heard: list[Hit], within: float = 0.125) -> list[tuple[Hit, Hit]]:
    """One-to-one pairs of hits at most `within` seconds apart, the closest first."""
    pairs = sorted((abs(s[0] - h[0]), i, j) for i, s in enumerate(seen) for j, h in enumerate(heard))
    used_i, used_j, matches = set(), set(), []
    for gap, i, j in pairs:
        if gap <= within and i not in used_i and j not in used_j:
            used_i.add(i)
            used_j.add(j)
            matches.append((seen[i], heard[j]))
    return matches


def agreement(seen: list[list[Hit]], heard: list[list[Hit]], within: float = 0.125) -> dict[str, float | None]:
    """hit_f1, pitch_accuracy and onset_error_ms (median, matched hits) over all clips, hit for hit."""
    matches = [pair for s, h in zip(seen, heard, strict=True) for pair in match(s, h, within)]
    total = sum(map(len, seen)) + sum(map(len, heard))
    agreeing = sum(abs(s[1] - h[1]) <= 0.5 for s, h in matches)
    errors = torch.tensor([abs(s[0] - h[0]) * 1000 for s, h in matches])
    return {
        "hit_f1": 2 * len(matches) / total if total else 1.0,
        "pitch_accuracy": agreeing / len(matches) if matches else 0.0,
        "onset_error_ms": errors.median().item() if matches else None,
        "seen_per_clip": sum(map(len, seen)) / len(seen),
        "heard_per_clip": sum(map(len, heard)) / len(heard),
    }
