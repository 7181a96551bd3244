"""Training in more than one process is accelerate's work; ours is to give it nothing that only one process can do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_tiny.py")
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def trained(folder: Path, launch: list[str], batch: int) -> dict[str, torch.Tensor]:
    subprocess.run([*launch, SCRIPT, folder, str(batch)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_train_the_adapter_of_one(tmp_path: Path) -> None:
    """The same data and the same global batch."""
    alone = trained(tmp_path / "one", [sys.executable], batch=4)
    together = trained(tmp_path / "two", LAUNCH, batch=2)
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=1e-6, rtol=0, msg=name)
    another = trained(tmp_path / "another", [sys.executable], batch=2)  # the control: half of the batch
    assert max((another[name] - weight).abs().max() for name, weight in alone.items()) > 1e-4
