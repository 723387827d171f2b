"""Training killed by SIGKILL at random moments, every other time while it writes a checkpoint, and resumed each time.

    python tests/faults/kill.py                       30 times, about 8 minutes
    python tests/faults/kill.py --times 3 --steps 500

Fails where a checkpoint cannot be read after a kill, or the final weights differ in one bit from those of a run that
nobody disturbed.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 16.0  # seconds that a process may live before it is killed: to start, and a few saves


def start(out: Path, options: list[str]) -> subprocess.Popen:
    """Training that goes on where `out` has got to."""
    way = ["--resume", out] if (out / "last.pt").exists() else ["--out", out]
    command = [sys.executable, ROOT / "train.py", *options, *way]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def writing(out: Path) -> bool:
    return any(out.glob(".last.*.pt")) or any(out.glob(".model.*.pt"))


def kill(process: subprocess.Popen, out: Path, rng: random.Random, while_writing: bool) -> bool:
    """Whether the process was still there to be killed."""
    deadline = time.monotonic() + (60 if while_writing else rng.uniform(0, LONGEST))
    while process.poll() is None and time.monotonic() < deadline and not (while_writing and writing(out)):
        time.sleep(0.0005)
    if while_writing:
        time.sleep(rng.uniform(0, 0.004))
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1000, help="enough that training outlives all kills")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, killed, half_written, step = random.Random(args.seed), 0, 0, 0
    options = ["--steps", str(args.steps), "--batch", "4", "--warmup", "20", "--save-minutes"]
    with tempfile.TemporaryDirectory() as folder:
        calm, rough = Path(folder) / "calm", Path(folder) / "rough"
        if start(calm, [*options, "60"]).wait():
            sys.exit("the undisturbed run failed")
        while killed < args.times:
            if not kill(start(rough, [*options, "0.04"]), rough, rng, while_writing=killed % 2 == 1):
                sys.exit(f"training ended after {killed} kills: take more --steps")
            killed += 1
            half_written += writing(rough)
            for name in ("last.pt", "model.pt"):
                if (rough / name).exists():
                    found = torch.load(rough / name, weights_only=True)["step"]
                    assert found >= step, f"{name} fell back to step {found} from {step}"
            step = torch.load(rough / "last.pt", weights_only=True)["step"] if (rough / "last.pt").exists() else 0
            print(f"kill {killed}: both checkpoints can be read; the last is of step {step}", flush=True)
        if start(rough, [*options, "60"]).wait():
            sys.exit("the last resumed run failed")
        for name in ("last.pt", "model.pt"):
            one, other = (torch.load(run / name, weights_only=True) for run in (calm, rough))
            same = all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
            assert same, f"the weights in {name} are not those of the undisturbed run"
        leftovers = [path.name for path in rough.iterdir() if path.name.startswith(".")]
        assert not leftovers, f"left behind: {leftovers}"
    print(f"{killed} kills, {half_written} of them in a half-written checkpoint: final weights bit-identical")


if __name__ == "__main__":
    main()
