"""A folder of broken and odd media files, made from rendered clips by a seed, and what reading it comes to.

    python tests/faults/corpus.py               300 files, a few minutes
    python tests/faults/corpus.py --n 40 --seed 1

Fails where reading crashes, hangs, takes more than MEMORY or leaves a file unaccounted for. Every file must be either
usable or in the index with a reason, and each must survive what the scripts do with a single file.
"""

import argparse
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import media  # noqa: E402, the project's files lie two folders up
from data import Xylophone  # noqa: E402

MEMORY, PATIENCE = 2**30, 900  # bytes of resident memory and seconds that reading the whole corpus may take
ATOMS = (b"moov", b"mdat", b"mvhd", b"tkhd", b"stsz", b"stts", b"stsc", b"stco", b"avc1", b"mp4a", b"trak", b"elst")


def write(path: Path, frames: np.ndarray, sound: np.ndarray | None, times: list | None = None, **codecs: str) -> None:
    """Frames (T, H, W, 3), or none of them, at `times` (seconds; else 8 a second), and sound, without the project."""
    with av.open(str(path), "w") as container:
        video = audio = None
        if len(frames):
            video = container.add_stream(codecs.get("video", "ffv1"), rate=8)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = codecs.get("pixels", "bgr0")
            video.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            audio = container.add_stream(codecs.get("audio", "pcm_f32le"), rate=16_000)
            audio.layout = "mono"
        for k, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), int(1000 * (times[k] if times else k / 8))
            container.mux(video.encode(frame))
        if video:
            container.mux(video.encode())
        if audio:
            block = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
            block.sample_rate, block.pts = 16_000, 0
            resampler = av.AudioResampler(format=audio.format, layout="mono", rate=16_000, frame_size=1024)
            for part in (*resampler.resample(block), *resampler.resample(None)):
                container.mux(audio.encode(part))
            container.mux(audio.encode())


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 8, 64, 512))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def swell(content: bytes, rng: random.Random) -> bytes:
    """A size, count or length in the header of an mp4 file becomes enormous."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        places = [i for atom in ATOMS for i in (content.find(atom),) if i >= 4]
        place = rng.choice(places) + rng.choice((-4, 4, 8, 12, 16, 28))
        struct.pack_into(">I", changed, min(place, len(changed) - 4), rng.choice((2**32 - 1, 2**31 - 1, 2**24, 65_536)))
    return bytes(changed)


def make(path: Path, kind: str, frames: np.ndarray, sound: np.ndarray, rng: random.Random) -> None:
    """One file of a kind; `frames` and `sound` are those of a sound clip."""
    black, odd = np.zeros((16, 1, 1, 3), np.uint8), sound.copy()
    whole = path.with_name("whole.mp4")
    if kind in ("truncated", "flipped", "swollen", "spliced", "another suffix"):
        media.save_mp4(whole, torch.from_numpy(frames), torch.from_numpy(sound), 8, scale=2)
        content = whole.read_bytes()
        whole.unlink()
        cut = rng.randrange(len(content))
        changed = {
            "truncated": content[:cut],
            "flipped": flip(content, rng),
            "swollen": swell(content, rng),
            "spliced": content[:cut] + rng.randbytes(rng.randrange(1, 5000)) + content[cut:],
            "another suffix": content,
        }[kind]
        path.with_suffix(rng.choice((".avi", ".mkv", ".mpg")) if kind == "another suffix" else ".mp4").write_bytes(
            changed
        )
    elif kind == "no clip at all":
        contents = (b"", b"\n", rng.randbytes(5000), b"<html>", b"RIFF\xff\xff\xff\xffAVI ", b"\0" * 4096)
        path.with_suffix(".mp4").write_bytes(rng.choice(contents))
    elif kind == "a link to nothing":
        path.with_suffix(".mp4").symlink_to("nowhere.mp4")
    elif kind == "sound alone":
        write(path.with_suffix(".mkv"), frames[:0], sound)
    elif kind == "picture alone":
        write(path.with_suffix(".mkv"), frames, None)
    elif kind == "uneven frames":
        times = np.cumsum([rng.choice((0.001, 0.04, 0.125, 0.4, 1.0)) for _ in frames]).tolist()
        write(path.with_suffix(".mkv"), frames, np.tile(sound, 8), times)
    elif kind == "one pixel":
        write(path.with_suffix(".mkv"), black, sound)
    elif kind == "one wide":
        write(path.with_suffix(".mkv"), frames[:, :, : rng.randint(1, 3)], sound, video="mjpeg", pixels="yuvj444p")
    elif kind == "8K":
        picture = np.tile(frames[:1, :, :, :], (1, 135, 240, 1))
        write(path.with_suffix(".mp4"), picture.repeat(17, 0), sound, video="mpeg4", pixels="yuv420p", audio="aac")
    elif kind == "sound of another length":
        length = rng.choice((1, 100, 8000, 31_999, 48_000, 160_000))
        write(path.with_suffix(".mkv"), frames, np.resize(sound, length))
    elif kind == "sound that is no number":
        odd[rng.randrange(len(odd)) :] = rng.choice((np.nan, np.inf, -np.inf, 1e30))
        write(path.with_suffix(".mkv"), frames, odd)
    elif kind == "silent":
        write(path.with_suffix(".mkv"), frames, 0 * sound)
    else:
        raise ValueError(kind)


KINDS = {  # and how many of 300
    "truncated": 60, "flipped": 80, "swollen": 60, "spliced": 16, "another suffix": 6, "no clip at all": 12,
    "a link to nothing": 2, "sound alone": 6, "picture alone": 6, "uneven frames": 12, "one pixel": 3, "one wide": 6,
    "8K": 3, "sound of another length": 12, "sound that is no number": 10, "silent": 6,
}  # fmt: skip


def make_corpus(folder: Path, n: int, seed: int) -> list[Path]:
    """n files, in proportion to KINDS, at least one of each kind."""
    rng = random.Random(seed)
    kinds = [kind for kind, count in KINDS.items() for _ in range(max(1, round(count * n / sum(KINDS.values()))))]
    frames, waveform, _ = Xylophone().render(8, torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    for k, kind in enumerate(kinds):
        clip = rng.randrange(len(frames))
        make(folder / f"{k:03d} {kind}.x", kind, frames[clip].numpy(), waveform[clip].numpy(), rng)
    return sorted(folder.iterdir())


def read(folder: Path) -> dict:
    """What a subprocess of its own finds: the index of the folder, a batch of it, and each file read alone."""
    from clips import ClipFolder

    clips = ClipFolder(folder)
    video, audio = clips.batch(64, torch.Generator().manual_seed(0))
    assert torch.isfinite(video).all() and torch.isfinite(audio).all() and audio.abs().max() <= 1
    alone = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            frames, sound = media.read_clip(path, 8, 32)
            alone[path.name] = f"{len(frames)} frames, {len(sound)} samples"
        except ValueError as error:
            alone[path.name] = str(error)
    memory = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return {"usable": len(clips.names), "skipped": clips.skipped, "alone": alone, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(args.read)))
        return
    folder = Path(tempfile.mkdtemp())
    try:
        paths = make_corpus(folder, args.n, args.seed)
        command = [sys.executable, __file__, "--read", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            sys.exit(f"reading the corpus ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found = json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)
    skips = Counter(name[4:-4] for name in found["skipped"])
    for kind in KINDS:
        print(f"{kind:26} {sum(kind == path.stem[4:] for path in paths):4} files, {skips[kind]:4} skipped")
    reasons = Counter(reason.split("(")[-1].rstrip(")")[:60] for reason in found["skipped"].values())
    print("\n".join(f"{count:4} {reason}" for reason, count in reasons.most_common(12)))
    usable, skipped, memory = found["usable"], len(found["skipped"]), found["memory"] / 2**20
    print(f"{len(paths)} files: {usable} usable, {skipped} skipped; at most {memory:.0f} MiB of memory")
    assert usable + skipped == len(paths) == len(found["alone"]), "a file is unaccounted for"
    assert all("\n" not in reason and reason for reason in found["skipped"].values()), "a reason is not one line"
    assert memory < MEMORY / 2**20, "reading took too much memory"


if __name__ == "__main__":
    main()
