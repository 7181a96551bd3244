"""The Triton kernels: on a GPU, or interpreted where there is none, they give the right numbers; for a GPU, they compile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from deltamem.rule.gpu import chunks, gradients, step  # noqa: E402
from deltamem.rule.gpu import decode as token  # noqa: E402

SIZES = {"length", "chunks", "r", "rows", "states", "gate_rows", "width", "features"}


def test_they_equal_the_definition() -> None:
    """In a process of its own: Triton decides when a kernel is defined whether it interprets it."""
    cases = Path(__file__).with_name("triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", str(cases)]
    environment = os.environ if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    "kernel",
    [
        chunks.chunk_maps,
        chunks.chunk_starts,
        chunks.read_chunks,
        gradients.chunk_offsets,
        gradients.chunk_ends,
        gradients.token_gradients,
        step._step,
        token._token,
        token._correct,
    ],
    ids=lambda kernel: kernel.__name__,
)
@pytest.mark.parametrize("masked", [True, False])
def test_they_compile_for_an_h100(kernel, masked) -> None:
    """What the interpreter takes is more than what the compiler takes."""
    constants = {"R": 8, "CHUNK": 64, "HELD": 16, "DECAY": "learned", "DECAY_FIRST": True, "EPSILON": 1e-6}
    constants |= {"WRITES": masked, "WIDTH": 256, "ROWS": 8, "FEATURES": 512} | ({} if masked else {"mask": None})
    names = [parameter.name for parameter in kernel.params]
    others = {"scale": "fp32", "mask": "*i1", "hidden": "*bf16", "output": "*bf16"}
    kinds = dict.fromkeys(SIZES, "i32") | others | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in names}
    source = ASTSource(kernel, signature, {n: constants[n] for n in names if n in constants})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
