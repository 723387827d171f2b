import json
import math

import pytest
import torch

import checkpoint
import evaluate
import media
from data import Xylophone
from discriminator import mirrored_noise
from unet import JointUNet


def test_evaluation_reports_every_system_and_noise_level(bases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "REFERENCE", 32)
    checkpoint.save(tmp_path / "model.pt", {"kind": "joint", "options": {}, "model": JointUNet().state_dict()})
    out = ["--joint", str(tmp_path), "--out", str(tmp_path)]
    evaluate.main(["--n", "4", "--steps", "2", "--run", str(bases), *out])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n"] == 4 and report["steps"] == 2
    keys = {
        "hit_f1",
        "pitch_accuracy",
        "alignment",
        "onset_error_ms",
        "video_frechet",
        "audio_frechet",
        "seconds_per_clip",
    }
    for name in ("real", "shuffled", "independent", "guided", "joint"):
        assert keys <= report["systems"][name].keys()
    assert report["systems"]["real"]["alignment"] == 1 and report["systems"]["shuffled"]["alignment"] == 0
    assert report["systems"]["real"]["hit_f1"] >= 0.98
    assert set(report["parameters"]) == {"video", "audio", "discriminator", "joint"}
    assert set(report["statistics"]) == {"real", "independent", "guided", "joint"}
    assert len(report["levels"]) == len(evaluate.LEVELS)
    assert math.isfinite(report["mutual_information_nats"])
    assert "guided" in capsys.readouterr().out


def test_a_folder_of_clips_is_judged_by_fidelity_alone(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "REFERENCE", 32)
    frames, waveform, _ = Xylophone().render(2, torch.Generator().manual_seed(0))
    for k in range(2):
        media.save_mp4(tmp_path / "clips" / f"{k}.mp4", frames[k], waveform[k], 8)
    out = ["--run", str(bases), "--out", str(tmp_path / "out")]
    evaluate.main(["--n", "4", "--steps", "1", "--data", str(tmp_path / "clips"), *out])
    guided = json.loads((tmp_path / "out" / "report.json").read_text())["systems"]["guided"]
    assert guided["alignment"] is None and guided["video_frechet"] > 0


def test_what_the_residual_explains_is_all_for_the_missing_noise_itself(bases, generator, monkeypatch):
    """Were r equal to eps - eps_base, it would explain everything, with cosine 1; r = 0 explains nothing."""
    models = checkpoint.load_run(bases)
    pair = Xylophone().batch(2, generator)
    monkeypatch.setattr(evaluate, "LEVELS", (0.3,))
    for scale, expected in ((0.0, 0.0), (1.0, 1.0)):

        def missing(logit, vt, at, t, sde, scale=scale):
            noise = torch.Generator().manual_seed(9)
            eps = [mirrored_noise(x, noise) for x in (vt, at)]
            return tuple(scale * (e - m(x, t)).detach() for e, m, x in zip(eps, models, (vt, at), strict=False))

        monkeypatch.setattr(evaluate, "residual_noise", missing)
        (row,) = evaluate.by_level(models, pair, seed=9, device="cpu")
        for name in ("video", "audio"):
            assert row[f"{name}_explained"] == pytest.approx(expected, abs=1e-5)
            assert row[f"{name}_cosine"] == pytest.approx(expected, abs=1e-4)


def test_a_log_ratio_is_calibrated_and_three_times_it_is_not(generator):
    """Of x ~ N(1, 1) against N(-1, 1) the log-ratio is 2 x; D = sigmoid(6 x) is off by |D - sigmoid(2 x)|."""
    real, fake = (torch.randn(200_000, generator=generator) + mean for mean in (1, -1))
    x = torch.cat([real, fake])
    assert evaluate.calibration_error(2 * real, 2 * fake) < 0.003
    off = (torch.sigmoid(6 * x) - torch.sigmoid(2 * x)).abs().mean().item()
    assert evaluate.calibration_error(6 * real, 6 * fake) == pytest.approx(off, abs=0.003)
