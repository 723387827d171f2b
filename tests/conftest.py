from pathlib import Path

import pytest
import torch

import checkpoint
import figures

torch.set_num_threads(1)  # tensors this small gain nothing from a second, and the numbers are those of any machine


@pytest.fixture(autouse=True)
def no_drawing(request, monkeypatch) -> None:
    """Contact sheets and loss curves take seconds each: they are drawn in tests marked `draws`, and else left empty."""
    if not request.node.get_closest_marker("draws"):
        for name in ("save_sheet", "save_curves"):
            monkeypatch.setattr(figures, name, lambda path, *_: path.touch())


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def bases(tmp_path_factory) -> Path:
    """A run folder of untrained networks: video.pt, audio.pt and a discriminator, model.pt."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    for kind, name in (("video", "video"), ("audio", "audio"), ("discriminator", "model")):
        state = {"kind": kind, "options": {}, "model": checkpoint.NETWORKS[kind]().state_dict()}
        checkpoint.save(folder / f"{name}.pt", state)
    return folder
