"""The clip-folder path on real files: a flash and a click at a known time, and every way in which a file can be
unfit.
"""

import gc
import json
import os
import shutil
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import index
import media
from clips import ClipFolder

FLASH = 1.25  # seconds


def write(
    path: Path, fps, rate: int, seconds: float = 2.5, size=(64, 48), channels: int = 1, codecs=("libx264", "aac")
):
    """A dark film that turns white at FLASH, with a click at the same time; `codecs` None leaves a stream out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        streams = []
        if codecs[0]:
            video = container.add_stream(codecs[0], rate=Fraction(fps).limit_denominator(1001))
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            streams.append(video)
        if codecs[1]:
            audio = container.add_stream(codecs[1], rate=rate)
            audio.layout = "stereo" if channels == 2 else "mono"
            streams.append(audio)
        if codecs[0]:
            for k in range(round(seconds * fps)):
                level = 255 if k / fps >= FLASH - 1e-9 else 0
                picture = np.full((size[1], size[0], 3), level, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode())
        if codecs[1]:
            sound = np.zeros(round(seconds * rate), np.float32)
            start = round(FLASH * rate)
            t = np.arange(len(sound) - start) / rate
            sound[start:] = 0.9 * np.exp(-t / 0.05) * np.sin(2 * np.pi * 1000 * t)
            form = audio.codec_context.format.name if codecs[1] == "pcm_s16le" else "fltp"
            for first in range(0, len(sound), 960):
                block = np.repeat(sound[None, first : first + 960], channels, 0)
                if form == "s16":
                    block = (block.T.reshape(1, -1) * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=form, layout=audio.layout.name)
                frame.sample_rate, frame.pts = rate, first
                container.mux(audio.encode(frame))
            container.mux(audio.encode())


CASES = [
    ("a.mp4", 24, 44_100, (64, 48), 2, ("libx264", "aac")),
    ("deep/er/b.mkv", 30_000 / 1001, 48_000, (48, 64), 1, ("libx264", "aac")),
    ("c.mov", 60, 22_050, (40, 40), 1, ("libx264", "aac")),
    ("d.webm", 25, 48_000, (64, 64), 2, ("libvpx", "libopus")),
    ("e.avi", 10, 16_000, (32, 32), 1, ("mpeg4", "pcm_s16le")),
    ("f.mp4", 8, 32_000, (128, 72), 2, ("libx264", "aac")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for name, fps, rate, size, channels, codecs in CASES:
        write(folder / name, fps, rate, size=size, channels=channels, codecs=codecs)
    return folder


@pytest.mark.parametrize("name", [case[0] for case in CASES])
def test_flash_and_click_leave_the_loader_together_and_on_time(folder, name):
    frames, waveform = media.read_clip(folder / name, 8, 32)
    lit = (frames.float().mean((1, 2, 3)) > 128).nonzero()[0].item() / 8
    heard = (waveform.abs() > 0.2).nonzero()[0].item() / media.SAMPLE_RATE
    assert abs(lit - FLASH) <= 1 / 8 and abs(heard - FLASH) <= 1 / 8
    assert abs(lit - heard) <= 1 / 8
    assert abs(heard - FLASH) < 0.06  # encoders' priming is undone; what is left is the container's rounding


def test_windows_cut_sound_and_picture_at_the_same_instant(folder):
    world = ClipFolder(folder)
    frames, waveform = world.windows(40, torch.Generator().manual_seed(0))
    assert frames.shape == (40, 16, 32, 32, 3) and waveform.shape == (40, 32_000)
    starts = set()
    for picture, sound in zip(frames, waveform, strict=True):
        lit = (picture.float().mean((1, 2, 3)) > 128).nonzero()[0].item() / 8
        heard = (sound.abs() > 0.2).nonzero()[0].item() / media.SAMPLE_RATE
        assert abs(lit - heard) <= 1 / 8
        starts.add(lit)
    assert len(starts) > 2  # windows start at different times


def test_batches_are_ready_for_the_models_and_repeat_with_the_seed(folder):
    world = ClipFolder(folder)
    video, audio = world.batch(3, torch.Generator().manual_seed(1))
    assert video.shape == (3, 3, 16, 32, 32) and audio.shape == (3, 1, 64, 128)
    assert torch.equal(video, world.batch(3, torch.Generator().manual_seed(1), only="video")[0])


def test_the_second_reading_comes_from_the_index_and_holds_the_clips_to_16_bits(folder, monkeypatch):
    pictures, sound = media.read_clip(folder / "a.mp4", 8, 32)
    first = ClipFolder(folder)
    monkeypatch.setattr(media, "read_clip", None)
    second = ClipFolder(folder)
    for x, y in zip(*(world.windows(9, torch.Generator().manual_seed(2)) for world in (first, second)), strict=True):
        assert torch.equal(x, y)
    row = [name.decode() for name in first.names].index(next(e for e in entries(folder) if e["path"] == "a.mp4")["key"])
    assert first.lengths[row].tolist() == [len(pictures), len(sound)]
    assert torch.equal(torch.from_numpy(np.load(first.cache / f"{first.names[row].decode()}.frames.npy")), pictures)
    kept = torch.from_numpy(np.load(first.cache / f"{first.names[row].decode()}.sound.npy")) / 32767
    assert (kept - sound.clamp(-1, 1)).abs().max() < 2e-5


def entries(folder: Path) -> list[dict]:
    """What the index says, with the names of the decoded files."""
    lines = (folder / ".mmdisco-cache" / "32px" / "index.jsonl").read_text().splitlines()
    return [entry | {"key": index.key(entry)} for entry in map(json.loads, lines)]


def reads(monkeypatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names, real = [], media.read_clip
    monkeypatch.setattr(media, "read_clip", lambda path, *a, **k: (names.append(path.name), real(path, *a, **k))[1])
    return names


def test_the_index_follows_new_changed_and_removed_files(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4", 10, 16_000)
    write(tmp_path / "b.mp4", 10, 16_000)
    read = reads(monkeypatch)
    ClipFolder(tmp_path)
    assert sorted(read) == ["a.mp4", "b.mp4"]
    read.clear()
    write(tmp_path / "c.mp4", 10, 16_000)
    write(tmp_path / "b.mp4", 10, 16_000, seconds=3)
    (tmp_path / "a.mp4").unlink()
    world = ClipFolder(tmp_path)
    assert sorted(read) == ["b.mp4", "c.mp4"] and [e["path"] for e in entries(tmp_path)] == ["b.mp4", "c.mp4"]
    assert len(list(world.cache.glob("*.npy"))) == 4  # those of a and of the old b are gone
    read.clear()
    next(world.cache.glob("*.sound.npy")).unlink()
    ClipFolder(tmp_path)
    assert len(read) == 1


def test_an_interrupted_index_goes_on(tmp_path, monkeypatch):
    for name in "abcdef":
        write(tmp_path / f"{name}.mp4", 10, 16_000)
    real, done = index.decode, []

    def stops(path, *rest):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(index, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        index.build(tmp_path, tmp_path / ".mmdisco-cache" / "32px", 8, 32, 16, workers=1)
    journal = tmp_path / ".mmdisco-cache" / "32px" / "index.jsonl"
    journal.write_text(journal.read_text() + '{"path": "d.mp4", "si')  # and a line that was cut short
    monkeypatch.setattr(index, "decode", real)
    read = reads(monkeypatch)
    assert len(ClipFolder(tmp_path).names) == 6
    assert len(done) == 3 and sorted([*read, *done]) == [f"{name}.mp4" for name in "abcdef"]


def test_unfit_clips_are_named_once_and_skipped(tmp_path, capsys):
    write(tmp_path / "good.mp4", 10, 16_000)
    write(tmp_path / "silent.mp4", 10, 16_000, codecs=("libx264", None))
    write(tmp_path / "short.mp4", 10, 16_000, seconds=1.5)
    (tmp_path / "broken.mp4").write_bytes(b"not a film")
    (tmp_path / "empty.mov").write_bytes(b"")
    cut = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 3])
    (tmp_path / "notes.txt").write_text("left alone")
    world = ClipFolder(tmp_path)
    assert len(world.names) == 1 and len(world.skipped) == 5
    lines = capsys.readouterr().err.strip().splitlines()
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 5
    assert any("silent.mp4: it has no sound" in line for line in skipped)
    assert any("short.mp4: it lasts 1.5 s" in line for line in skipped)
    assert {e["path"] for e in entries(tmp_path) if "reason" in e} == set(world.skipped)


def test_more_unfit_clips_than_a_screen_holds_are_counted(tmp_path, capsys):
    write(tmp_path / "good.mp4", 10, 16_000)
    for k in range(25):
        (tmp_path / f"{k}.mp4").write_bytes(b"no")
    assert len(ClipFolder(tmp_path).skipped) == 25
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    assert len(lines) == 11 and "skipped 15 more of 26 clips" in lines[-1]


def test_held_out_files_are_never_trained_on_and_stay_held_out(tmp_path):
    write(tmp_path / "0.mp4", 10, 16_000)
    for k in range(1, 40):
        shutil.copy(tmp_path / "0.mp4", tmp_path / f"{k}.mp4")

    def parts() -> tuple[set, set]:
        worlds = [ClipFolder(tmp_path, hold_out=0.25, part=part) for part in ("train", "held-out")]
        found = {entry["key"]: entry["path"] for entry in entries(tmp_path)}
        return tuple({found[name.decode()] for name in world.names} for world in worlds)

    train, held_out = parts()
    assert not train & held_out and len(train | held_out) == 40 and 4 <= len(held_out) <= 16
    for k in range(40, 50):
        shutil.copy(tmp_path / "0.mp4", tmp_path / f"{k}.mp4")
    more_train, more_held_out = parts()
    assert train <= more_train and held_out <= more_held_out
    assert len(ClipFolder(tmp_path).names) == 50
    with pytest.raises(ValueError, match="no clip of .* is in the held-out part at --hold-out 0"):
        ClipFolder(tmp_path, part="held-out")


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    """An index of 500 and of 5,000 clips: what stays is under 300 bytes a clip, of whose 180 kB none stay.

    Python's table of interned strings, which pathlib puts names into, is not counted: it grows in leaps of megabytes.
    """
    kept = {}
    for n in (500, 5_000):
        folder = tmp_path / str(n)
        cache = folder / ".mmdisco-cache" / "32px"
        cache.mkdir(parents=True)
        np.save(folder / "frames.npy", np.zeros((16, 32, 32, 3), np.uint8))
        np.save(folder / "sound.npy", np.zeros(32_000, np.int16))
        with (cache / "index.jsonl").open("w") as lines:
            for k in range(n):
                (folder / f"{k}.mp4").touch()
                entry = index.facts(folder / f"{k}.mp4", folder) | {"frames": 16, "samples": 32_000}
                lines.write(json.dumps(entry) + "\n")
                for kind in ("frames", "sound"):
                    os.link(folder / f"{kind}.npy", cache / f"{index.key(entry)}.{kind}.npy")
        tracemalloc.start()
        world = ClipFolder(folder)
        world.batch(64, torch.Generator().manual_seed(0))
        gc.collect()
        peak, traces = tracemalloc.get_traced_memory()[1], tracemalloc.take_snapshot().traces
        tracemalloc.stop()
        kept[n] = sum(trace.size for trace in traces if "sys.intern(" not in trace.traceback.format()[-1])
        assert len(world.names) == n and peak < 100e6
    assert kept[5_000] - kept[500] < 300 * 4_500


def test_what_is_kept_of_a_clip_does_not_grow_with_its_frame_rate_or_length(tmp_path, monkeypatch):
    """Only pictures on screen at the wanted times are scaled, and nothing after the wanted seconds is kept."""
    write(tmp_path / "fast.mp4", 100, 16_000, seconds=4, size=(32, 32))
    scaled, real = [], media.square
    monkeypatch.setattr(media, "square", lambda *a: (scaled.append(1), real(*a))[1])
    frames, waveform = media.read_clip(tmp_path / "fast.mp4", 8, 32, seconds=2)
    assert len(frames) == 16 and len(waveform) == 32_000 and len(scaled) == 16
    assert len(media.read_clip(tmp_path / "fast.mp4", 8, 32)[0]) == 32
    write(tmp_path / "slow.mp4", 1, 16_000, seconds=4, size=(32, 32))
    scaled.clear()
    frames, _ = media.read_clip(tmp_path / "slow.mp4", 8, 32)
    assert len(frames) == 32 and len(scaled) == 4


def test_a_folder_with_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        ClipFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no clips"):
        ClipFolder(tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"not a film")
    with pytest.raises(ValueError, match="none of the 1 clips"):
        ClipFolder(tmp_path)
