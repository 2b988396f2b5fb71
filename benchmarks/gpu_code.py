"""What torch's compiler writes for a GPU, written and run where there is none.

On a GPU a compiled update (`mtrl.compiled`) is kernels in Triton and calls of libraries. To write
them the compiler needs to know little of a GPU, and is told of an H100 here. What it has written is
then run on a CPU's numbers: kernels by Triton's interpreter, slowly, and all else as it stands.
Torch's build for CPUs will do.

Nothing is known here of how long anything takes on a GPU, of how it rounds, of memory that several
programs of a kernel reach for in the same moment, or of CUDA graphs. Constants are not folded, as
that happens on the GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from mtrl import compiled, products

if not torch.cuda.is_available():  # read when Triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

GPU = torch.device("cuda", 0)

H100 = {"multi_processor_count": 132, "major": 9, "regs_per_multiprocessor": 65536}
H100 |= {"max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024, "warp_size": 32}


class GPUCode:
    """A function written for a GPU, to be called with a CPU's tensors.

    Attributes:
        text: Of the module that the compiler wrote.
        kernels: Those of its kernels that are in Triton, by name.
        backwards: Run a kernel's programs from the last to the first. What comes of it must be the
            same, as on a GPU they run in any order.
    """

    def __init__(
        self, function: Callable[..., Any], module: ModuleType, kernels: dict[str, Kernel]
    ) -> None:
        self._function, self._module = function, module
        self.kernels = kernels
        self.backwards = False
        self.text = Path(str(module.__file__)).read_text()

    def __call__(self, *inputs: Tensor) -> Any:
        """Run it."""
        for kernel in self.kernels.values():
            kernel.backwards = self.backwards
        cpu = importlib.import_module("torch._C._dynamo.guards")._empty_strided_cpu
        with (
            patch.object(self._module, "empty_strided_cuda", cpu),
            patch.object(torch.cuda, "_DeviceGuard", lambda _: nullcontext()),
            patch.object(torch.cuda, "set_device", lambda _: None),
        ):
            return self._function(*inputs)

    def launches(self) -> Counter[str]:
        """Count what a call launches, by the name of the kernel, library call or operation."""
        start = self.text.index("def call(self, args)")
        body = self.text[start : self.text.index("runner = Runner", start)]
        called = re.findall(r"(?m)^ +(?:\w+ = )?([\w.]+)\(", body)
        return Counter(
            name.removesuffix(".run").removesuffix(".default")
            for name in called
            if name.endswith(".run")
            or name.startswith("extern_kernels.")
            or (name.startswith("torch.ops.") and "view" not in name)
        )


class Kernel:
    """One in Triton, interpreted.

    Attributes:
        source: Its text, with how it is to be launched.
        configs: The ways to launch it that the compiler would try, of which the first is taken.
        backwards: As `GPUCode` has it.
    """

    def __init__(self, name: str, source: str) -> None:
        self.source = source
        self.backwards = False
        self._function, self.configs, self._about, _ = _load(name, source)

    def run(self, *args: Any, stream: int) -> None:
        """Interpret all programs of a launch."""
        del stream
        heuristics = importlib.import_module("torch._inductor.runtime.triton_heuristics")
        config = self.configs[0]
        sizes = dict(zip(self._function.arg_names, args, strict=False)) | config.kwargs
        grid = heuristics.GridExpr.from_meta(self._about, config).eval_slow(sizes)
        builder = importlib.import_module("triton.runtime.interpreter").interpreter_builder
        number = builder.set_grid_idx

        def numbered(*place: int) -> None:
            last = (size - 1 - each for size, each in zip(grid, place, strict=False))
            number(*((*last, 0, 0)[:3] if self.backwards else place))

        with patch.object(builder, "set_grid_idx", numbered):
            self._function[grid](*args, **config.kwargs)


def _load(name: str, source: str) -> tuple[Any, Sequence[Any], dict[str, Any], dict[str, Any]]:
    """Load a kernel.

    Returns:
        It, the ways to launch it that the compiler would try, and what it says about the kernel,
        for itself and for Triton.
    """

    def without_tuning(_: Any, configs: Sequence[Any], *about: Any, **named: Any) -> Any:
        for_triton = named["triton_meta"] if "triton_meta" in named else about[0]
        return lambda function: (function, configs, named["inductor_meta"], for_triton)

    heuristics = importlib.import_module("torch._inductor.runtime.triton_heuristics")
    helpers = importlib.import_module("torch._inductor.runtime.triton_helpers")
    with (
        patch.object(heuristics, "cached_autotune", without_tuning),
        patch.object(helpers, "set_driver_to_gpu", lambda: None),
    ):
        cache = importlib.import_module("torch._inductor.codecache").PyCodeCache
        module = cache.load(source)
    if os.environ["TRITON_INTERPRET"] == "1":
        module.libdevice = _Libdevice()
    loaded: tuple[Any, Sequence[Any], dict[str, Any], dict[str, Any]] = getattr(module, name)
    return loaded


def compile_for_a_gpu(name: str, source: str) -> int:
    """Return how many bytes of an H100's machine code a kernel takes, if nothing is interpreted."""
    triton = importlib.import_module("triton")
    backend = importlib.import_module("triton.backends.compiler")
    function, (config, *_), _, about = _load(name, source)
    compiled = triton.compile(
        triton.compiler.ASTSource(
            *(function, about["signature"], about["constants"] | config.kwargs, about["configs"][0])
        ),
        target=backend.GPUTarget("cuda", 90, H100["warp_size"]),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    return len(compiled.asm["cubin"])


class _Libdevice:
    """What a GPU's own library of functions does, by torch: Triton's interpreter has none."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        interpreter = importlib.import_module("triton.runtime.interpreter")
        language = importlib.import_module("triton.language")

        def call(*args: Any) -> Any:
            given = [torch.from_numpy(np.asarray(each.handle.data)) for each in args]
            result, kind = getattr(torch, name)(*given), args[0].handle.dtype
            if result.dtype == torch.bool:
                result, kind = result.int(), language.int32
            is_block = args[0].type.is_block()
            shaped = language.block_type(kind, list(result.shape)) if is_block else kind
            return language.tensor(interpreter.TensorHandle(result.numpy(), kind), shaped)

        return call


@contextmanager
def writing_for_a_gpu() -> Iterator[list[GPUCode]]:
    """Let `Compiled` write for a GPU, given a CPU's tensors and "cuda" as their device.

    To be combined with `mtrl.dispatch.as_on_a_gpu`.

    Yields:
        What was written so far.
    """
    written: list[GPUCode] = []
    kernels: dict[str, Kernel] = {}
    compile_as_ever = compiled._compile

    def compile_for_gpu(
        graph: GraphModule, inputs: list[Tensor], kind: str
    ) -> tuple[Callable[..., Any], list[ModuleType]]:
        kernels.clear()
        with _told_of_a_gpu(kernels):
            result, modules = compile_as_ever(_moved(graph), _fakes(inputs), kind)
        written.append(GPUCode(result, modules[-1], dict(kernels)))
        return written[-1], modules

    with (
        patch.object(compiled, "_compile", compile_for_gpu),
        patch.object(compiled, "compiler_version", lambda _: "Triton"),
        patch.object(products, "has_bf16", lambda _: True),
        # Constants that it folds it computes where they are needed.
        patch.dict(compiled._OPTIONS["cuda"], {"joint_graph_constant_folding": False}),
    ):
        yield written


@contextmanager
def _told_of_a_gpu(kernels: dict[str, Kernel]) -> Iterator[None]:
    hints = importlib.import_module("torch._inductor.runtime.hints")
    about = hints.DeviceProperties(type="cuda", index=0, cc=90, **H100)
    told = SimpleNamespace(**H100, name="H100", gcnArchName="", minor=0, total_memory=80 << 30)

    def kernel(_: Any, name: str, source: str, device_str: str = "cuda") -> Kernel:
        del device_str
        return kernels.setdefault(name, Kernel(name, source))

    replaced: dict[str, dict[str, Any]] = {
        "torch._inductor.runtime.hints": {"DeviceProperties.create": lambda _: about},
        "torch._inductor.scheduler": {"has_triton": lambda *_: True},
        "torch._inductor.async_compile": {"AsyncCompile.triton": kernel},
        "torch.utils._triton": {"triton_hash_with_backend": lambda: "", "has_triton": lambda *_: 1},
        "torch.cuda": {
            "get_device_properties": lambda *_: told,
            "get_device_capability": lambda *_: (9, 0),
            "current_device": lambda: 0,
            "device_count": lambda: 1,
        },
        "torch._C": {"_cuda_getCurrentRawStream": lambda _: 0},
    }
    with ExitStack() as stack:
        stack.enter_context(_guarding_nothing())
        for module, names in replaced.items():
            for name, new in names.items():
                owner = importlib.import_module(module)
                *classes, last = name.split(".")
                for each in classes:
                    owner = getattr(owner, each)
                stack.enter_context(patch.object(owner, last, new, create=module == "torch._C"))
        yield


@contextmanager
def _guarding_nothing() -> Iterator[None]:
    """Let torch pretend to change the current GPU: for one it does what it does for a CPU."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[1] = guards[1], guards[0]
    try:
        yield
    finally:
        guards[1] = before


def _fakes(inputs: Sequence[Tensor]) -> list[Tensor]:
    with FakeTensorMode():
        return [
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=GPU)
            for each in inputs
        ]


def _moved(graph: GraphModule) -> GraphModule:
    """Let a function that was traced on a CPU allocate on a GPU."""
    for node in graph.graph.nodes:
        node.meta.clear()
        if node.kwargs.get("device") is not None:
            node.update_kwarg("device", GPU)
        node.args = tuple(GPU if isinstance(each, torch.device) else each for each in node.args)
    graph.recompile()
    return graph


if __name__ == "__main__":
    # Triton interprets or compiles, as it is told when it is imported.
    print(sum(compile_for_a_gpu(*each) for each in json.load(sys.stdin).items()))
