"""What made an output: manifest.json beside every report.json, enough to make the same numbers again.

On one machine equal options and versions give equal bytes; `threads` and `processes` change the order of sums, and so
the last digits.

Used by every script that writes a report.
"""

import argparse
import functools
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import torch

import distributed
from files import save_json

ROOT = Path(__file__).parent
PACKAGES = ("torch", "numpy", "av", "soundfile", "imageio", "matplotlib", "diffusers", "transformers")


@functools.cache
def commit() -> dict[str, str | bool | None]:
    """The git commit of this code and whether files differ from it; None where there is no git to ask."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if changes is None else bool(changes)}


@functools.cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(args: argparse.Namespace) -> dict:
    device = str(getattr(args, "device", "cpu"))
    on_gpu = device.startswith("cuda")
    return {
        "script": Path(sys.argv[0]).name,
        "options": vars(args),
        **commit(),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.count(),
    }


def save_report(args: argparse.Namespace, report: dict) -> None:
    """report.json and manifest.json in args.out."""
    save_json(args.out / "report.json", report)
    save_json(args.out / "manifest.json", describe(args))
