"""The index of a folder of clips: which files can serve, decoded once, and why the others cannot.

    FOLDER/.mmdisco-cache/32px/index.jsonl      a line a file: path, size, time of change; its lengths, or the reason
                               HASH.frames.npy  uint8 (T, 32, 32, 3)
                               HASH.sound.npy   int16 (samples,)

A line is added as soon as its file is decoded, so that an interrupted build goes on where it stopped, and a new start
decodes only new and changed files. A folder that cannot be written to has its cache under ~/.cache/mmdisco.

Used by clips.py.
"""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import media
from files import append, atomic

SUFFIXES = {".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg"}
SHOWN = 10  # reasons that are printed; all of them are in the index


def find_clips(folder: Path) -> list[Path]:
    """Every file below `folder` that may be a clip, hidden folders left out."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: --data takes a folder of clips, or xylophone")
    paths = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"{folder} holds no clips ({', '.join(sorted(SUFFIXES))})")
    return paths


def cache_folder(folder: Path, name: str) -> Path:
    if os.access(folder, os.W_OK):
        return folder / ".mmdisco-cache" / name
    return Path.home() / ".cache" / "mmdisco" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16] / name


def facts(path: Path, folder: Path) -> dict:
    """What tells a file from a changed one; of a link to nothing, that it is one."""
    found = path.stat() if path.exists() else path.lstat()
    return {"path": str(path.relative_to(folder)), "size": found.st_size, "mtime_ns": found.st_mtime_ns}


def key(entry: dict) -> str:
    """The name of a file's decoded form."""
    return hashlib.sha256(f"{entry['path']}|{entry['size']}|{entry['mtime_ns']}".encode()).hexdigest()[:24]


def held_out(path: str, share: float) -> bool:
    """Whether a file belongs to the held-out share: of its name alone, so that more files move none."""
    return int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) < share * 2**32


def decode(path: Path, entry: dict, cache: Path, fps: int, size: int, frames: int) -> dict:
    """The entry of one file, its decoded form in the cache if it can serve."""
    try:
        pictures, sound = media.read_clip(path, fps, size)
        lasts = min(len(pictures) / fps, len(sound) / media.SAMPLE_RATE)
        if lasts < frames / fps:
            raise ValueError(f"it lasts {lasts:.1f} s, shorter than {frames / fps:g} s")
        if not torch.isfinite(sound).all():
            raise ValueError("its sound holds values that are not numbers")
    except ValueError as error:
        return entry | {"reason": str(error)}
    sound = (sound.clamp(-1, 1) * 32767).round().to(torch.int16)
    for kind, x in (("frames", pictures), ("sound", sound)):
        with atomic(cache / f"{key(entry)}.{kind}.npy") as temporary:
            np.save(temporary, x.numpy())
    return entry | {"frames": len(pictures), "samples": len(sound)}


def read_lines(path: Path) -> dict[str, dict]:
    """Entries by path; the last line of an interrupted build may be half a line."""
    entries = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        entries[entry["path"]] = entry
    return entries


def is_current(entry: dict | None, fact: dict, cache: Path) -> bool:
    """Whether an entry is of the file as it is now, and its decoded form still there."""
    if entry is None or not fact.items() <= entry.items():
        return False
    return "reason" in entry or all((cache / f"{key(entry)}.{kind}.npy").exists() for kind in ("frames", "sound"))


def build(folder: Path, cache: Path, fps: int, size: int, frames: int, workers: int | None = None) -> list[dict]:
    """Entries of all files of `folder`, in the order of their paths."""
    wanted = {entry["path"]: entry for entry in (facts(path, folder) for path in find_clips(folder))}
    journal = cache / "index.jsonl"
    lines = read_lines(journal)
    known = {path: lines[path] for path, fact in wanted.items() if is_current(lines.get(path), fact, cache)}
    todo = [entry for path, entry in wanted.items() if path not in known]
    append(journal, "")  # ends what an interrupted build left
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        jobs = [pool.submit(decode, folder / e["path"], e, cache, fps, size, frames) for e in todo]
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="reading clips", disable=len(jobs) < 20):
            entry = job.result()
            known[entry["path"]] = entry
            append(journal, json.dumps(entry))
    finally:
        pool.shutdown(cancel_futures=True)
    entries = [known[path] for path in wanted]
    with atomic(journal) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    keep = {key(entry) for entry in entries}
    for path in cache.glob("*.npy"):
        if path.name.split(".")[0] not in keep:
            path.unlink()
    tell(folder, entries, journal)
    return entries


def tell(folder: Path, entries: list[dict], journal: Path) -> None:
    skipped = [entry for entry in entries if "reason" in entry]
    for entry in skipped[:SHOWN]:
        print(f"skipped {folder / entry['path']}: {entry['reason']}", file=sys.stderr)
    if len(skipped) > SHOWN:
        print(f"skipped {len(skipped) - SHOWN} more of {len(entries)} clips; {journal} says why", file=sys.stderr)
