"""Settings shared by all tests."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import torch
from hypothesis import settings

from mtrl.amx import instructions
from mtrl.dispatch import portable

if not torch.cuda.is_available():  # read when Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples on every run and machine: a failure is a failure of the change under test.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(
    scope="module", params=["kernels", "portable", *["tiles"] * instructions.available()]
)
def both_ways(request):
    """Runs a test with compiled kernels, and with what devices other than a CPU run.

    Where a processor multiplies tiles of bf16, with kernels for that as well.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "tiles":
            patch.setattr("mtrl.amx.instructions.available", lambda: False)
        with portable() if request.param == "portable" else contextlib.nullcontext():
            yield


@pytest.fixture
def signals_as_in_a_terminal():
    """Undo what `nohup` and shells' `&` do to signals, which child processes inherit."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
