import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch.testing import assert_close

import checkpoint
import distributed
import objective
import train
from clips import open_world
from score import VPSDE

ROOT = Path(__file__).parents[1]


def test_without_torchrun_all_is_that_of_one_process():
    assert (distributed.rank(), distributed.count(), distributed.rows(12)) == (0, 1, slice(0, 12))
    assert distributed.agree(0.0, 0.25) == (0.0, 0.25)
    loss = object()
    assert distributed.shared(None, loss) is loss


def gradients(arguments: list[str], k: int) -> dict[str, torch.Tensor]:
    """Of batch k, by parameter; base models in float32, whose rounding does not depend on the rows beside."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    args, sde = train.parse(arguments), VPSDE()
    world = open_world(args.data, args.size)
    network = checkpoint.NETWORKS[args.model](**checkpoint.options_of(args.model, world))
    bases = tuple(checkpoint.load_base(args.bases / f"{kind}.pt", kind, 32, sde) for kind in ("video", "audio"))
    make_batch, loss_of = objective.make_objective(args, network, world, sde, bases)
    step = distributed.shared(network, loss_of)  # kept: its hooks live as long as it
    step(make_batch(k))[0].backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def one_of_two(rank: int, port: int, arguments: list[str], k: int, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    objective.mixed_precision = lambda device, inference=False: torch.autocast("cpu", enabled=False)
    with distributed.processes("cpu"):
        assert distributed.count() == 2 and distributed.rows(8) == slice(4 * rank, 4 * rank + 4)
        assert distributed.agree(float(rank), 1.0 - rank) == (1.0, 1.0)
        torch.save(gradients(arguments, k), out / f"{rank}.pt")


@pytest.mark.parametrize("model, k", (("discriminator", 0), ("discriminator", 9), ("joint", 9)))
def test_gradients_on_two_processes_are_those_on_one_with_the_same_global_batch(model, k, bases, tmp_path, monkeypatch):
    """Double backprop under DDP; batch 0 is of the warm-up, where the repairs take no part."""
    monkeypatch.setattr(objective, "mixed_precision", lambda *_, **__: torch.autocast("cpu", enabled=False))
    arguments = [model, "--batch", "8", "--steps", "20", "--warmup", "5", "--bases", str(bases)]
    mp.spawn(one_of_two, (29_500 + os.getpid() % 1000, arguments, k, tmp_path), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = gradients(arguments, k)
    assert alone.keys() == ranks[0].keys()
    scale = max(g.abs().max() for g in alone.values())
    for name, g in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert_close(ranks[0][name] / scale, g / scale, rtol=1e-5, atol=1e-5)


def test_torchrun_trains_writes_once_and_resumes_with_another_number_of_processes(bases, tmp_path):
    """Two processes for 3 steps, then one up to 5, against one throughout: nearly, as sums have another order."""
    options = ["--batch", "8", "--warmup", "1", "--bases", str(bases), "--steps", "5", "--lr", "1e-3"]
    script = tmp_path / "stop_after_three.py"
    script.write_text(
        "import train\nreal = train.progress_of\n"
        "train.progress_of = lambda run, args: 1.0 if run['step'] == 3 else real(run, args)\n"
        "train.preview = lambda *a: None\ntrain.main()\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), *options, "--out", str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("discriminator: 3 steps") == 1
    train.train(train.parse(["--resume", str(tmp_path / "two")]))
    train.train(train.parse([*options, "--out", str(tmp_path / "one")]))
    two, one = (checkpoint.load(tmp_path / name / "last.pt") for name in ("two", "one"))
    assert two["step"] == one["step"] == 5
    start = checkpoint.NETWORKS["discriminator"]
    torch.manual_seed(0)
    initial = start().state_dict()
    moved = sum((one["model"][name] - initial[name]).square().sum() for name in initial).sqrt()
    apart = sum((one["model"][name] - two["model"][name]).square().sum() for name in initial).sqrt()
    assert apart < 0.02 * moved


def test_rows_that_cannot_be_shared_are_an_error(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    with pytest.raises(ValueError, match="8 rows cannot be shared by 3 processes"):
        distributed.rows(8)
