import math

import pytest
import soundfile
import torch
from torch.testing import assert_close

import data
import hits
import media
from data import Xylophone


def tone(frequency: float, seconds: float = 2.0, amplitude: float = 0.5) -> torch.Tensor:
    t = torch.arange(int(seconds * media.SAMPLE_RATE)) / media.SAMPLE_RATE
    return amplitude * torch.sin(2 * math.pi * frequency * t)


def peak_frequency(waveform: torch.Tensor) -> float:
    """By the peak of a long, zero-padded spectrum."""
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform)), n=1 << 18).abs()
    return spectrum.argmax().item() * media.SAMPLE_RATE / (1 << 18)


def test_spectrogram_reads_a_sine_at_its_level_and_in_its_band():
    """A sine of amplitude 0.1 (-20 dB) reads 1 - 2 * 20 / 60 = 1/3 where a filter is centred on it."""
    frequency = 1000.0
    spectrum = media.log_mel(tone(frequency, amplitude=0.1)[None])[0, 0, :, 64]
    mel = [2595 * math.log10(1 + f / 700) for f in (60, frequency, media.SAMPLE_RATE / 2)]
    band = (mel[1] - mel[0]) / (mel[2] - mel[0]) * (media.N_MELS + 1) - 1  # centres lie evenly between the ends
    assert abs(spectrum.argmax().item() - band) <= 0.5
    assert spectrum.max().item() == pytest.approx(1 / 3, abs=0.12)
    assert_close(media.log_mel(torch.zeros(1, 32_000)), torch.full((1, 1, 64, 128), -1.0))


def test_spectrogram_of_a_louder_sound_is_higher_by_its_decibels():
    quiet, loud = (media.log_mel(tone(700, amplitude=a)[None])[0, 0, :, 64].max() for a in (0.05, 0.5))
    assert (loud - quiet).item() == pytest.approx(20 * 2 / 60, abs=1e-3)


@pytest.mark.parametrize("bar", range(len(data.SCALE)))
def test_a_struck_bar_comes_back_in_tune_and_on_time(bar):
    """Spectrogram and back: within a semitone, and its onset within 20 ms."""
    note, onset = Xylophone().notes[bar], 0.7
    waveform = torch.zeros(32_000)
    start = int(onset * media.SAMPLE_RATE)
    waveform[start:] = note[: 32_000 - start]
    back = media.griffin_lim(media.log_mel(waveform[None]))[0]
    pitch = peak_frequency(back[start : start + 8000])
    assert abs(12 * math.log2(pitch / data.SCALE[bar])) < 1
    energy = back.square()
    half = energy[start : start + 800].max() / 4
    assert abs((energy > half).nonzero()[0].item() / media.SAMPLE_RATE - onset) < 0.02


def test_frames_survive_the_round_trip_to_video():
    frames = torch.randint(0, 256, (2, 4, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(media.to_frames(media.to_video(frames)), frames)


def test_pairs_written_to_mp4_and_read_back_keep_their_hits(tmp_path):
    frames, waveform, truth = Xylophone().render(24, torch.Generator().manual_seed(2))
    pictures, sounds = [], []
    for k in range(len(frames)):
        media.save_mp4(tmp_path / f"{k}.mp4", frames[k], waveform[k], 8)
        f, w = media.read_clip(tmp_path / f"{k}.mp4", 8, 32)
        assert f.shape == (16, 32, 32, 3) and abs(len(w) - 32_000) <= 1024
        pictures.append(f)
        sounds.append(torch.nn.functional.pad(w, (0, 1024))[:32_000])
    seen, heard = hits.see(media.to_video(torch.stack(pictures))), hits.hear(media.log_mel(torch.stack(sounds)))
    for score in (hits.agreement(seen, heard), hits.agreement(seen, truth), hits.agreement(heard, truth)):
        assert score["hit_f1"] >= 0.98 and score["pitch_accuracy"] >= 0.98 and score["onset_error_ms"] < 5


def test_pairs_written_to_wav_and_read_back_keep_their_hits(tmp_path):
    _, waveform, truth = Xylophone().render(40, torch.Generator().manual_seed(3))
    back = []
    for k, sound in enumerate(waveform):
        media.save_wav(tmp_path / f"{k}.wav", sound)
        samples, rate = soundfile.read(tmp_path / f"{k}.wav", dtype="float32")
        assert rate == media.SAMPLE_RATE
        back.append(torch.from_numpy(samples))
    score = hits.agreement(hits.hear(media.log_mel(torch.stack(back))), truth)
    assert score["hit_f1"] >= 0.98 and score["pitch_accuracy"] >= 0.98


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"precious")
    with pytest.raises((ValueError, TypeError, IndexError, OSError)):
        media.save_mp4(path, torch.zeros(4, 0, 0, 3, dtype=torch.uint8), torch.zeros(32), 8)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_known_halfway_through_a_clip_says_nothing_of_what_comes(generator):
    waveform = torch.randn(1, 32_000, generator=generator)
    later = torch.cat([waveform[:, :16_000], torch.randn(1, 16_000, generator=generator)], dim=1)
    audio, changed = media.log_mel(waveform), media.log_mel(later)
    frames, columns = media.first_half(torch.zeros(1, 3, 16, 32, 32), audio)
    assert frames.flatten().tolist() == [True] * 8 + [False] * 8
    same = (audio == changed)[0, 0].all(0)
    assert torch.equal(columns, same)
