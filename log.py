"""What training writes down: means over windows of steps, whole and per noise level, and the report made of them.

Used by train.py.
"""

import math
import resource

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
        entry["levels"][name] = [
            v if math.isfinite(v := values[bins == b].nanmean().item()) else None for b in range(LEVELS)
        ]
    return entry


def summary(run: dict) -> dict:
    """report.json: the last tenth of the run's windows, averaged."""
    last = run["history"][-max(1, len(run["history"]) // 10) :]
    names = last[-1]["loss"] if last else ()
    return {
        "steps": run["step"],
        "seconds": run["seconds"],
        "steps_per_second": run["step"] / max(run["seconds"], 1e-9),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": {name: mean([h["loss"].get(name) for h in last]) for name in names},
        "levels": {
            name: [mean([h["levels"][name][b] for h in last if name in h["levels"]]) for b in range(LEVELS)]
            for name in names
        },
    }


def mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
