import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from toy import traps
from toy.run import LEVELS, make_target

PATH = Path(__file__).parents[1] / "docs" / "figures.py"


@pytest.fixture
def drawing(tmp_path, monkeypatch):
    """docs/figures.py, which draws into a folder of the test, and animates a single clip."""
    spec = importlib.util.spec_from_file_location("drawing", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DOCS", tmp_path)
    monkeypatch.setattr(module, "STARTS", 1)
    monkeypatch.setattr(module, "ANIMATED", 0)
    return module


def test_pictures_of_the_readme_come_from_the_shipped_weights_small_and_on_white(drawing, tmp_path):
    drawing.main(["noise", "guidance", "animation"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["denoising.gif", "guidance.png", "noise.png"]
    for name in ("noise", "guidance"):
        picture = Image.open(tmp_path / f"{name}.png").convert("RGB")
        assert picture.getpixel((0, 0)) == (255, 255, 255) and (tmp_path / f"{name}.png").stat().st_size < 100_000
    animation = Image.open(tmp_path / "denoising.gif")
    assert animation.n_frames == 14 and animation.size == (528, 120)
    sounds = [np.asarray(picture.convert("L"))[54:114, :256] for picture in ImageSequence.Iterator(animation)]
    assert sounds[0].std() > 1.5 * sounds[-1].std()  # noise, and a spectrogram that is mostly silent


def test_a_picture_that_is_unknown_is_an_error(drawing, capsys):
    with pytest.raises(SystemExit, match="2"):
        drawing.main(["nois"])
    assert "no picture nois: there are noise, log_ratio" in capsys.readouterr().err


def test_fakes_of_another_kernel_have_its_variance_and_no_correlation():
    target, _ = make_target("gaussian", 0.8)
    t = tuple(torch.full((40_000,), level) for level in (0.3, 0.001))
    fakes = traps.other_kernel(target, t, torch.Generator().manual_seed(0))
    for x, level in ((fakes.vt, 0.3), (fakes.at, 0.001)):
        sigma = target.sde.marginal(torch.tensor([level]))[1].item()
        assert x.var().item() == pytest.approx(1 + sigma**2, rel=0.03)
    assert abs(torch.corrcoef(torch.cat([fakes.vt, fakes.at], dim=1).T)[0, 1].item()) < 0.02


def test_no_logit_classifies_better_than_the_exact_log_ratio():
    target, _ = make_target("gaussian", 0.8)
    best = traps.accuracies(target.log_ratio, target)
    tilted = traps.accuracies(lambda z, t: target.log_ratio(z, t) + z[:, 0], target)
    wiggly = traps.accuracies(lambda z, t: target.log_ratio(z, t) + 0.05 * torch.sin(40 * z[:, 0]), target)
    assert best[0] > 0.68 and best[-1] == pytest.approx(0.5, abs=0.01) and len(best) == len(LEVELS)
    assert best[0] > tilted[0] + 0.01 and abs(best[0] - wiggly[0]) < 0.01  # wiggles spoil the gradient alone
