"""A disk that is full while checkpoints, caches, clips and reports are written: a small tmpfs, its free space swept.

    python tests/faults/full_disk.py          mounts a tmpfs, which takes root; about 4 minutes

Fails where a script ends otherwise than with one line that says what is full, where a file is left half written, or
where, with room made, the same command does not end with the same result as on a disk that never was full.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio.v3 as imageio
import soundfile
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import media  # noqa: E402, the project's files lie two folders up
from data import Xylophone  # noqa: E402

MIB = 2**20
# of reports: time, memory, places, and averages that begin anew at a resume
ASIDE = ("seconds", "steps_per_second", "peak_memory_mb", "clips", "options", "loss", "levels")
READERS = {
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".mp4": lambda path: media.read_clip(path, 8, 32),
    ".wav": soundfile.read,
    ".png": imageio.imread,
    ".json": lambda path: json.loads(path.read_text()),
    ".html": lambda path: path.read_text().index("</html>"),
}


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if mount.returncode:
            print("not run: a tmpfs cannot be mounted here, which takes root")
            sys.exit(0)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def little_room(disk: Path, free: int) -> Iterator[None]:
    """All but `free` bytes of the disk taken."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(MIB)) == MIB:
                pass
    except OSError:
        pass
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - free))
    try:
        yield
    finally:
        ballast.unlink()


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def check_all_whole(out: Path) -> None:
    """No file in `out` is half of one, or a temporary one."""
    for path in out.rglob("*") if out.exists() else ():
        assert not path.name.startswith("."), f"{path} was left behind"
        READERS[path.suffix](path)


def contents(out: Path) -> dict[str, str]:
    """What a run left, but for what tells of its time and of the place; of checkpoints the weights alone."""
    found = {}
    for path in sorted(out.iterdir()):
        if path.suffix == ".pt":
            weights = torch.load(path, weights_only=True)["model"]
            content = b"".join(value.numpy().tobytes() for value in weights.values())
        elif path.suffix == ".json":
            report = json.loads(path.read_text())
            content = json.dumps({key: value for key, value in report.items() if key not in ASIDE}).encode()
        elif path.name == "loss.png":  # its curves begin where a run was resumed
            continue
        else:
            content = path.read_bytes()
        found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def sweep(name: str, disk: Path, calm: list, rough: list, out: Path, again: list, rooms: list[int]) -> None:
    """The command `rough`, which writes to `out`, with ever more room; then `again` with enough, against `calm`."""
    done = run(*calm, "--out", disk / f"{name}, calm")
    assert done.returncode == 0, done.stderr
    full = 0
    for free in rooms:
        with little_room(disk, free):
            done = run(*(again if (out / "last.pt").exists() else rough))
        if done.returncode:
            full += 1
            line = done.stderr.replace("\r", "\n").strip().splitlines()[-1]
            assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
            assert line.startswith("error: ") and "cannot be written" in line and "No space left" in line, done.stderr
        check_all_whole(out)
    done = run(*(again if (out / "last.pt").exists() else rough))
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(disk / f"{name}, calm"), f"{name}: not what an undisturbed run leaves"
    print(f"{name:12} full {full} times of {len(rooms)}: one line each, no file broken, the same result in the end")
    assert full, f"{name}: the disk was never full, so this proves nothing"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with small_disk(160 * MIB) as disk:
        steps = ["train.py", "--steps", "8", "--batch", "4", "--warmup", "4", "--save-minutes"]
        run_folder, resumed = disk / "run", ["train.py", "--steps", "8", "--resume", disk / "run"]
        rooms = [0, MIB, 5 * MIB, 9 * MIB, 12 * MIB, 16 * MIB, 20 * MIB, 24 * MIB]
        sweep("checkpoints", disk, [*steps, "9"], [*steps, "0", "--out", run_folder], run_folder, resumed, rooms)

    with small_disk(64 * MIB) as disk:
        clips, out = disk / "samples", ["--out", disk / "samples"]
        command = ["sample.py", "--n", "2", "--steps", "2"]
        assert run(*command, "--seed", "1", *out).returncode == 0  # an earlier result, which must stay or be replaced
        rooms = [0, 4096, 20_000, 40_000, 80_000, 120_000, 200_000, 400_000]
        sweep("clips", disk, command, [*command, *out], clips, [], rooms)
        command = ["evaluate.py", "--score", clips / "guided_00.mp4"]
        sweep("reports", disk, command, [*command, "--out", disk / "score"], disk / "score", [], [0, 4096])

    with small_disk(64 * MIB) as disk:
        folder, out = disk / "clips", disk / "out"
        frames, waveforms, _ = Xylophone().render(8, torch.Generator().manual_seed(0))
        for k in range(8):
            media.save_mp4(folder / f"{k}.mp4", frames[k], waveforms[k], 8)
        command = ["train.py", "video", "--data", folder, "--steps", "2", "--batch", "4", "--save-minutes", "9"]
        rooms = [0, 4096, 60_000, 120_000, 300_000, 600_000]
        sweep("caches", disk, command, [*command, "--out", out], out, [], rooms)


if __name__ == "__main__":
    main()
