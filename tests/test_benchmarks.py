import json

import evaluate
from benchmarks import speed, steps


def test_speed_reports_every_part_its_memory_and_the_ratios(tmp_path, capsys):
    speed.main(["--batch", "4", "--rounds", "1", "--profile", "--out", str(tmp_path), "--device", "cpu"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["seconds"]) == 10 and min(report["seconds"].values()) > 0
    assert report["peak_memory_mb"].keys() == report["seconds"].keys()
    assert set(report["ratios"]) == {
        "guided / unguided sampler step",
        "double backprop / first order",
        "discriminator's step / (first order + base models)",
    }
    assert all(0 < share < 1 for share in report["matrix_work"].values()) and len(report["matrix_work"]) == 2
    assert "steps/s" in capsys.readouterr().out


def test_steps_reports_a_row_for_each_solver_and_number_of_steps(bases, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "REFERENCE", 32)
    options = ["--n", "2", "--steps", "1", "2", "--solvers", "ddim", "ddpm", "--run", str(bases)]
    steps.main([*options, "--out", str(tmp_path)])
    systems = json.loads((tmp_path / "report.json").read_text())["systems"]
    assert set(systems) == {"real", "shuffled", "ddim 1", "ddim 2", "ddpm 1", "ddpm 2"}
    assert (tmp_path / "steps.png").stat().st_size > 1000
