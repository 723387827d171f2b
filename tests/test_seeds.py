import torch

from many import generate
from seeds import stream


def numbers(seed: int, k: int) -> list[float]:
    return torch.randn(4, generator=stream(seed, k)).tolist()


def test_another_seed_gives_other_numbers_at_every_place_and_the_same_seed_the_same():
    places = [(seed, k) for seed in (0, 1, 2, -1, 500_000, 1_000_000) for k in (0, 1, 64)]
    drawn = {place: tuple(numbers(*place)) for place in places}
    assert len(set(drawn.values())) == len(drawn)
    assert all(numbers(*place) == list(values) for place, values in drawn.items())


def test_seeds_share_no_place_of_a_long_training_run():
    """Neither two below 10,000 nor two that the documents use; and all of a state lies in the bits torch keeps."""
    for seeds in (range(10_000), (0, 1, 2, 500_000, 700_000, 1_000_000)):
        starts = torch.tensor([stream(seed, 0).initial_seed() for seed in seeds]).sort().values
        assert starts[0] >= 0 and starts[-1] < 2**32
        assert min(starts.diff().min(), starts[0] + 2**32 - starts[-1]) > 280_000
    assert [stream(3, k).initial_seed() - stream(3, 0).initial_seed() for k in (1, 99_999)] == [1, 99_999]


def test_clips_of_another_seed_are_other_clips():
    def draw(video_shape, audio_shape, generator):
        return torch.randn(video_shape, generator=generator), torch.randn(audio_shape, generator=generator)

    clips = {seed: generate(draw, [(2,), (3,)], seed, 6, "clips", chunk=2)[:2] for seed in (0, 1, 500_000)}
    for seed, other in ((0, 1), (0, 500_000), (1, 500_000)):
        assert all((x != y).all() for x, y in zip(clips[seed], clips[other], strict=True))
    assert clips[0][0].unique().numel() == 12  # and no chunk repeats another
