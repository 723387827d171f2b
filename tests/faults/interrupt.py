"""Ctrl-C at random moments of every script, from the first import to the last line.

    python tests/faults/interrupt.py               8 times each, about 8 minutes
    python tests/faults/interrupt.py --times 2

Fails where a traceback is shown, a script goes on for longer than PATIENCE, a half-written file is left, or training
has lost a step that it had said was saved.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0  # seconds in which a script must have ended
SCRIPTS = {  # and the seconds in which Ctrl-C falls: until a little after it would end, or long enough
    "toy/run.py": ([], 40.0),
    "train.py": (["--steps", "60", "--batch", "4", "--warmup", "4", "--save-minutes", "0.03"], 25.0),
    "sample.py": (["--n", "2", "--steps", "6"], 10.0),
    "evaluate.py": (["--n", "8", "--steps", "2"], 25.0),
    "benchmarks/speed.py": ([], 40.0),
}


def interrupt(name: str, options: list[str], seconds: float, out: Path) -> tuple[int, str, float]:
    """Exit status, what it said on stderr, and how long it took to end, of a script that gets Ctrl-C as in a shell."""
    command = [sys.executable, ROOT / name, *options, *(["--out", out] if "bench" not in name else [])]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, err = process.communicate(timeout=seconds)
        return process.returncode, err, 0.0
    except subprocess.TimeoutExpired:
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # a shell sends it to workers too
    try:
        _, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{name} did not end in {PATIENCE:g} s after Ctrl-C") from None
    return process.returncode, err, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for name, (options, longest) in SCRIPTS.items():
            ends, slowest = Counter(), 0.0
            for k in range(args.times):
                out = Path(folder) / Path(name).stem / str(k)
                seconds = longest * (k + rng.random()) / args.times  # spread over the whole run
                status, err, took = interrupt(name, options, seconds, out)
                assert "Traceback" not in err, f"{name} after {seconds:.2f} s:\n{err[-3000:]}"
                assert status in (0, 130, -signal.SIGINT), f"{name} after {seconds:.2f} s: {status}\n{err[-3000:]}"
                left = list(out.rglob(".*")) if out.exists() else []
                assert not left, f"{name} after {seconds:.2f} s left {left}"
                if name == "train.py" and status == 0:
                    assert torch.load(out / "last.pt", weights_only=True)["step"] >= 1
                ends[{0: "done or saved", 130: "stopped", -signal.SIGINT: "ended at once"}[status]] += 1
                slowest = max(slowest, took)
            found = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
            print(f"{name:20} {found}; at most {slowest:.1f} s after Ctrl-C", flush=True)


if __name__ == "__main__":
    main()
