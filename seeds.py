"""Random numbers of a seed and a place: batch k of a training run, the chunk of clips that begins with clip k.

    state = k + G seed  mod 2^32,   G = 2^32 / phi to the nearest integer,   phi = (1 + 5^(1/2)) / 2

torch's generator on the CPU keeps the low 32 bits of what it is seeded with, so a seed in the bits above them would
change nothing. G is odd, so that no two seeds below 2^32 are alike, and its multiples lie far apart on a circle: two
seeds below 10,000 share no state within 280,000 places.

Used by objective.py for batches, by many.py for clips, by evaluate.py for the clips that training drew.
"""

import torch

G = round(2**32 * 2 / (1 + 5**0.5))


def stream(seed: int, k: int) -> torch.Generator:
    """The generator, on the CPU, of place k of a seed; those of seed 0 are seeded with k itself."""
    return torch.Generator().manual_seed((k + G * seed) % 2**32)
