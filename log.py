"""What training writes down: means over windows of steps, whole and per noise level, and the report made of them.

Used by train.py.
"""

import math
import resource
import statistics

import torch

LEVELS = 10  # bins of the noise level t


def average(window: list, step: int) -> dict:
    """Means over a window of steps: of each part, and of each part per noise level (None where no draw fell)."""
    t = torch.cat([t for _, t in window])
    entry = {"step": step, "loss": {}, "levels": {}}
    for name in window[-1][0]:
        values = torch.cat([parts[name] if name in parts else torch.full_like(t, torch.nan) for parts, t in window])
        bins = (t * LEVELS).long().clamp(max=LEVELS - 1)
        entry["loss"][name] = values.nanmean().item()
        means = [values[bins == b].nanmean().item() for b in range(LEVELS)]
        entry["levels"][name] = [mean if math.isfinite(mean) else None for mean in means]
    return entry


def summary(run: dict) -> dict:
    """report.json: each part of the loss over the last tenth of the run, and per noise level in its last window."""
    last = run["history"][-max(1, len(run["history"]) // 10) :]
    names = last[-1]["loss"] if last else ()
    return {
        "steps": run["step"],
        "seconds": run["seconds"],
        "steps_per_second": run["step"] / max(run["seconds"], 1e-9),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": {name: statistics.mean(h["loss"][name] for h in last if name in h["loss"]) for name in names},
        "levels": last[-1]["levels"] if last else {},
    }
