"""Sound and picture as tensors, and back as files.

    waveform (B, samples) in [-1, 1], mono, 16 kHz   <->   log-mel spectrogram (B, 1, n_mels, L) in [-1, 1]
    frames uint8 (T, H, W, 3)                        <->   video (B, 3, T, H, W) in [-1, 1]

The spectrogram is the mel-filtered STFT magnitude in decibels, with FLOOR_DB mapped to -1 and 0 dB to +1.
The way back has no phase, so Griffin-Lim (with the momentum of Perraudin et al. 2013) invents a consistent one.
Used by data.py to read clips and by train.py, sample.py and evaluate.py to write them.
"""

import functools
import math
import os
import tempfile
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SAMPLE_RATE = 16_000  # samples per second
N_FFT = 1024  # 64 ms window
HOP = 250  # 15.6 ms: eight spectrogram columns to a video frame at 8 fps
N_MELS = 64
FLOOR_DB = -60.0


@functools.cache
def mel_filters() -> Tensor:
    """Triangular filters, evenly spaced on the mel scale 2595 log10(1 + f / 700), each with unit peak: (n_mels, bins)."""
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(2595 * math.log10(1 + 60 / 700), top, N_MELS + 2) / 2595) - 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)


def mel_band(frequency: Tensor) -> Tensor:
    """The (fractional) index of the mel band centred on a frequency in Hz."""
    low = 2595 * math.log10(1 + 60 / 700)
    step = (2595 * math.log10(1 + SAMPLE_RATE / 2 / 700) - low) / (N_MELS + 1)
    return (2595 * torch.log10(1 + frequency / 700) - low) / step - 1


def stft(waveform: Tensor) -> Tensor:
    """(B, samples) -> complex (B, bins, 1 + samples // HOP), scaled so that a full-scale sine has magnitude 1."""
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(waveform, N_FFT, HOP, window=window, return_complex=True, pad_mode="reflect")
    return spectrum * (2 / window.sum())


def log_mel(waveform: Tensor) -> Tensor:
    """Waveform (B, samples) -> log-mel spectrogram (B, 1, n_mels, samples // HOP) in [-1, 1]."""
    magnitude = stft(waveform)[..., : waveform.shape[-1] // HOP].abs()
    mel = mel_filters().to(waveform.device) @ magnitude
    decibels = 20 * torch.log10(mel.clamp(min=10 ** (FLOOR_DB / 20)))
    return (1 - 2 * decibels / FLOOR_DB).clamp(-1, 1)[:, None]


def griffin_lim(spectrogram: Tensor, iterations: int = 48) -> Tensor:
    """Log-mel spectrogram (B, 1, n_mels, L) -> waveform (B, L * HOP), scaled to stay within [-1, 1].

    The linear magnitude is found by multiplicative updates for non-negative least squares (Lee & Seung 2001), which
    keep it positive and, unlike the pseudo-inverse, do not smear a partial over its neighbours.
    """
    mel = 10 ** ((1 - spectrogram[:, 0].float().clamp(-1, 1)) / 2 * FLOOR_DB / 20)
    mel = (mel - 10 ** (FLOOR_DB / 20)).clamp(min=0)  # the floor stands for silence, not for hiss
    filters = mel_filters().to(mel.device)
    magnitude = filters.T @ mel
    target, gram = magnitude.clone(), filters.T @ filters
    for _ in range(60):
        magnitude = magnitude * target / (gram @ magnitude + 1e-9)
    magnitude = torch.cat([magnitude, magnitude[..., -1:]], dim=-1)  # the column that log_mel leaves out
    window = torch.hann_window(N_FFT, device=mel.device)
    length = mel.shape[-1] * HOP
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)).to(mel.device) * 2 * math.pi
    angles, previous = torch.polar(torch.ones_like(magnitude), phase), torch.zeros(1, device=mel.device)
    for _ in range(iterations):
        wave = torch.istft(magnitude * angles * (window.sum() / 2), N_FFT, HOP, window=window, length=length)
        consistent = stft(wave)
        angles = consistent + 0.9 * (consistent - previous)
        angles, previous = angles / angles.abs().clamp(min=1e-9), consistent
    wave = torch.istft(magnitude * angles * (window.sum() / 2), N_FFT, HOP, window=window, length=length)
    return wave / wave.abs().amax(dim=-1, keepdim=True).clamp(min=1)


def to_video(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float (B, 3, T, H, W) in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """float (B, 3, T, H, W) in [-1, 1] -> uint8 (B, T, H, W, 3)."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()
