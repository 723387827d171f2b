import argparse
import importlib.metadata
import json
import subprocess
from pathlib import Path

import torch

import manifest


def test_a_manifest_holds_what_the_numbers_depend_on(tmp_path):
    args = argparse.Namespace(out=tmp_path, seed=7, device="cpu", weight=[1.0, 5.0], run=Path("runs/x"))
    manifest.save_report(args, {"n": 1})
    kept = json.loads((tmp_path / "manifest.json").read_text())
    assert kept["options"] == {"out": str(tmp_path), "seed": 7, "device": "cpu", "weight": [1.0, 5.0], "run": "runs/x"}
    assert kept["versions"]["torch"] == importlib.metadata.version("torch")
    assert kept["threads"] == torch.get_num_threads() and kept["processes"] == 1 and kept["device"] == "cpu"
    assert json.loads((tmp_path / "report.json").read_text()) == {"n": 1}


def test_the_commit_is_that_of_the_code_and_none_without_git(monkeypatch):
    asked = ["git", "-C", str(manifest.ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(asked, capture_output=True, text=True)
    assert manifest.commit()["commit"] == (head.stdout.strip() if head.returncode == 0 else None)
    monkeypatch.setenv("PATH", "")
    assert manifest.commit.__wrapped__() == {"commit": None, "changed": None}
