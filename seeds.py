"""Random numbers of a seed and a place: batch k of a training run, the chunk of clips that begins with clip k.

    state = k + 2^32 seed / phi  mod 2^32,   phi = (1 + 5^(1/2)) / 2

torch's generator on the CPU keeps the low 32 bits of what it is seeded with, so a seed in the bits above them would
change nothing. Multiples of the golden section lie far apart on a circle: two seeds below 10,000 share no state within
280,000 places.

Used by objective.py for batches, by many.py for clips, by evaluate.py for the clips that training drew.
"""

import torch

GOLDEN = 2654435769  # 2^32 / phi, to the nearest integer


def stream(seed: int, k: int) -> torch.Generator:
    """The generator, on the CPU, of place k of a seed; those of seed 0 are seeded with k itself."""
    return torch.Generator().manual_seed((k + GOLDEN * seed) % 2**32)
