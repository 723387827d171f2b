import re
from pathlib import Path

import pytest
import torch

import checkpoint
from unet import AudioUNet, VideoUNet


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"half a file", "cannot be read as a checkpoint"),
        (None, "is missing"),
        ({"kind": "audio", "options": {}, "model": {}}, "holds a audio model where a video model is needed"),
        ({"kind": "video", "options": {}, "model": {}}, r"is no VideoUNet: .* is missing, needed .*; and \d+ more"),
        ({"kind": "video", "options": {"depth": 3}, "model": {}}, "is of another version of this project"),
        ({"weights": 1}, "is not a model.pt of this project"),
    ],
)
def test_bad_weights_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "video.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        checkpoint.save(path, content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        checkpoint.load_network(path, "video")
    assert "\n" not in str(error.value)


def test_a_pickle_with_code_in_it_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "boom",))

    torch.save(Bomb(), tmp_path / "video.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        checkpoint.load_network(tmp_path / "video.pt", "video")
    assert not (tmp_path / "boom").exists()


def test_weights_of_another_model_are_refused_by_the_shapes_that_differ(tmp_path):
    path, weights = tmp_path / "video.pt", VideoUNet().state_dict()
    name = next(name for name, x in weights.items() if x.dim() > 1)
    shape, wider = tuple(weights[name].shape), (weights[name].shape[0] + 1, *weights[name].shape[1:])
    for model, told in (
        (weights | {name: torch.zeros(wider)}, f"{name} is {wider}, needed is {shape}"),
        (weights | {"more": torch.zeros(2, 3)}, "more is (2, 3), needed is none"),
    ):
        checkpoint.save(path, {"kind": "video", "options": {}, "model": model})
        with pytest.raises(ValueError, match=f"video.pt is no VideoUNet: {re.escape(told)}$"):
            checkpoint.load_network(path, "video")
    checkpoint.save(path, {"kind": "video", "options": {}, "model": AudioUNet().state_dict()})
    with pytest.raises(ValueError, match=r"is \(.*\), needed is .*; and \d+ more$"):
        checkpoint.load_network(path, "video")
