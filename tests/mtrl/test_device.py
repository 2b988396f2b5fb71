import os
import platform
import subprocess
import sys

import pytest
import torch

from mtrl.device import (
    resolve_device,
    resolve_precision,
    set_threads,
    share_cores,
    use_precision,
)
from mtrl.errors import UserError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@without_gpu
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused():
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"`--device` is cuda, .* no GPU: use --device cpu"):
        resolve_device("cuda")


@with_gpu
def test_with_a_gpu_auto_is_cuda():
    assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "overlap", "asked", "shared"),
    [
        ("cpu", True, (0, 0), (4, 4)),
        ("cpu", True, (0, 2), (6, 2)),
        ("cpu", False, (0, 0), (8, 8)),
        ("cpu", False, (3, 0), (3, 3)),
        ("cuda", True, (0, 0), (1, 7)),
        ("cuda", False, (0, 0), (1, 8)),
        ("cuda", True, (3, 2), (3, 2)),
    ],
)
def test_cores_are_shared_by_what_works_on_them(monkeypatch, device, overlap, asked, shared):
    monkeypatch.setattr("mtrl.device.available_cores", lambda: 8)
    assert share_cores(*asked, overlap=overlap, device=torch.device(device)) == shared


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    assert resolve_precision("auto", cpu) in ("fp32", "bf16")
    assert use_precision("bf16") is torch.bfloat16
    assert use_precision("fp32") is torch.float32


def test_without_tf32_it_is_the_more_exact_fp32():
    assert resolve_precision("tf32", torch.device("cpu")) == "fp32"


def test_tf32_is_switched_on_and_off():
    try:
        assert use_precision("tf32") is torch.float32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        assert use_precision("fp32") is torch.float32
    assert torch.get_float32_matmul_precision() == "highest"


def test_sums_of_products_in_bf16_are_those_of_float32():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    try:
        matmul.allow_bf16_reduced_precision_reduction = True  # as torch has it
        use_precision("bf16")
        assert not matmul.allow_bf16_reduced_precision_reduction
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


@with_gpu
def test_tf32_rounds_products_and_fp32_does_not():
    device = resolve_device("cuda")
    generator = torch.Generator(device).manual_seed(0)
    left, right = torch.rand(2, 256, 256, device=device, generator=generator)
    exact = left.double() @ right.double()
    errors = {}
    for precision in ("tf32", "fp32"):
        use_precision(resolve_precision(precision, device))
        errors[precision] = (left @ right - exact).abs().max() / exact.abs().max()
    assert errors["fp32"] < 1e-6 < errors["tf32"] < 1e-3


def test_threads_are_set_and_default_to_the_cores_granted():
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(0) == torch.get_num_threads()
        assert 1 <= torch.get_num_threads() <= (os.cpu_count() or 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it speaks to glibc's malloc")
def test_freed_memory_stays_with_the_process():
    """Measured in processes of their own: the setting is the process's."""
    program = """
import resource, sys, torch
from pathlib import Path
from mtrl.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
blocks = [torch.ones(2_000_000) for _ in range(10)]  # 8 MB each
full = resident()
del blocks
print(full - resident())
"""

    def given_back(argument: str) -> int:
        command = [sys.executable, "-c", program, argument]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert given_back("keep") < 8e6
    assert given_back("leave") > 60e6
