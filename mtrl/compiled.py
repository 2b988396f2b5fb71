"""A whole update as one compiled function: a few loops instead of a thousand operations."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from . import dispatch
from .cache import cache_folder
from .decompositions import DECOMPOSITIONS
from .errors import UserError
from .recording import Recording

CompileName = Literal["auto", "on", "off"]

WORTH_COMPILING = 20_000
"""Updates that make up for half a minute: of ten tasks each saves some milliseconds."""

_messages = logging.getLogger("mtrl")

_MEND = "mend that, or give `--compile off`"

REMEDIES = {
    "cpu": "install g++ or clang++ and Python's headers, or give `--compile off`",
    "cuda": "install Triton, a C compiler and Python's headers, or give `--compile off`",
}
"""For what is missing, by kind of device."""

UNCOMPILED = "updates are taken uncompiled, which takes longer and rounds otherwise: %s"
"""A message, which lacks the reason."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        # The compiler hashes precompiled headers with this program; without them it is slow.
        "cpp_cache_precompile_headers": shutil.which("openssl") is not None,
    },
    "cuda": {
        # What it chose by timing it, it might choose otherwise when a run is resumed.
        "deterministic": True,
        "shape_padding": False,
        "triton.autotune_pointwise": False,
        # Launches are what costs: loops that need nothing of each other are one kernel, and what is
        # joined, as J's parts are, is written by one.
        "combo_kernels": True,
        "force_pointwise_cat": True,
    },
}
"""What the compiler is asked for, by kind of device."""


class Compiled:
    """An update, compiled to one function by torch's compiler.

    An update of small networks is a thousand calls from Python into torch, which take as long as
    what they compute, and each reads from memory what the one before has just written. Compiled,
    it is some sixty calls, and what belongs together stays in a processor's registers and caches.
    On a GPU it is a hundred launches or so for three times as many, to be captured in a CUDA graph.

    What is compiled are the operations that such a graph would repeat (`mtrl.graph.Updates`), and
    the terms are the same: static shapes, no question to the device, state that stays in its
    memory. Two things differ from capturing one. To see the operations the update is rehearsed, and
    all that the rehearsal wrote or drew is undone, so that the first update that counts is a
    compiled one. And what an update draws at random is drawn by torch, in the update's order,
    before each call. Results equal the update's own to rounding, in bf16 to that of bf16.

    Args:
        update: Takes one update and returns metrics. What it reads and changes are tensors, and
            what it draws are new tensors, from generators that it names.
        device: Where it works.

    Attributes:
        draws: What draws the update's random numbers, in its order.

    Raises:
        UserError: What the compiler needs is missing (see `compiler_version`), or it fails.
        ValueError: The update draws in another way.
    """

    def __init__(
        self, update: Callable[[], dict[str, Tensor]], device: torch.device | str = "cpu"
    ) -> None:
        device = torch.device(device)
        compiler_version(device)  # or a remedy
        _messages.info("compiling an update: half a minute or so")
        with dispatch.traced():
            with _rehearsing() as rehearsal, rehearsal:
                update()  # what is allocated at first use must be there already
            names = list[str]()

            def observed() -> list[Tensor]:
                with rehearsal:
                    metrics = update()
                names[:] = metrics
                return list(metrics.values())

            with _rehearsing() as rehearsal:
                traced = make_fx(observed, decomposition_table=DECOMPOSITIONS)()
        self._names = names
        graph, self._inputs = _lift_tensors(traced)
        places = {_place(tensor): number for number, tensor in enumerate(self._inputs)}
        self.draws = [
            _into(draw, self._inputs[places[_place(drawn)]]) for draw, drawn in rehearsal.draws
        ]
        function, modules = _compile(graph, self._inputs, device.type)
        # What is recorded here for a CPU, a graph records on a GPU.
        self._function = Recording(function, modules) if device.type == "cpu" else function

    def __call__(self) -> dict[str, Tensor]:
        """Take one update.

        Returns:
            Its metrics, which the next call overwrites.
        """
        with torch.no_grad():
            for draw in self.draws:
                draw()
            return dict(zip(self._names, self._function(*self._inputs), strict=True))


def resolve_compile(choice: CompileName, device: torch.device, updates: int) -> bool:
    """Tell whether to compile updates.

    Args:
        choice: "auto" is yes on a CPU where a compiler works and updates are many, as a GPU's has
            not been run on one yet.
        device: Where they are taken.
        updates: How many of them a whole run takes, wherever it is resumed.

    Raises:
        UserError: It is "on", and what it needs is missing (see `compiler_version`).
    """
    if choice == "off":
        return False
    if choice == "auto" and (device.type != "cpu" or updates < WORTH_COMPILING):
        return False
    try:
        compiler_version(device)
    except UserError as missing:
        if choice == "on":
            raise
        _messages.info(UNCOMPILED, missing)
        return False
    return True


@functools.cache
def compiler_version(device: torch.device) -> str:
    """Name what compiles for a device, which has a say in how results round.

    It is tried once in a process, and what was found stands: a run asks again with each checkpoint,
    when the compiler may be another, or the disk full.

    Raises:
        UserError: For a CPU there is no C++ compiler, or it lacks Python's headers or what it links
            with; for a GPU, Triton does not work.
    """
    if device.type == "cuda":
        if not dispatch.triton_works():
            raise UserError(f"`--compile` needs Triton, which fails: {REMEDIES['cuda']}.")
        return f"Triton {importlib.import_module('triton').__version__}"
    remedy = REMEDIES["cpu"]
    try:
        inductor = _torch_compiler()
    except (AttributeError, ImportError, OSError) as error:  # of a later torch, or of its cache
        raise UserError(f"`--compile`: torch's compiler fails ({error}): {_MEND}.") from error
    options = ["-shared", "-fPIC", "-fopenmp", f"-I{sysconfig.get_path('include')}"]
    try:
        compiler = inductor.cpp_builder.get_cpp_compiler()
        told = _run([compiler, "--version"])
    except (inductor.exc.InvalidCxxCompiler, OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"`--compile` needs a C++ compiler, found none: {remedy}.") from error
    try:
        with tempfile.TemporaryDirectory(prefix="mtrl-") as folder:
            library = ["-o", str(Path(folder, "library.so")), "-x", "c++", "-"]
            _run([compiler, *options, *library], "#include <Python.h>\n#include <omp.h>\n")
    except subprocess.CalledProcessError as error:
        found = _last_line(error.stderr)
        raise UserError(f"`--compile`: {compiler} fails ({found}): {remedy}.") from error
    except OSError as error:
        raise UserError(f"`--compile`: there is no folder for it ({error}): {_MEND}.") from error
    return told.split("\n")[0]


def _run(command: list[str], given: str = "") -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


def _last_line(text: str) -> str:
    """Return the last line of what a compiler says that tells of an error, or else the last."""
    lines = text.strip().splitlines() or [""]
    return next((line for line in reversed(lines) if "error" in line), lines[-1])


class _Rehearsal(TorchDispatchMode):
    """Watches what is written and drawn, to undo it, and keeps draws out of what is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[functools.partial[Tensor], Tensor]] = []
        self._written: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with disable_proxy_modes_tracing():
            for tensor in _written_by(func, args, kwargs):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._written:
                    self._written[storage.data_ptr()] = storage, storage.clone()
            generator = kwargs.get("generator")
            in_place = next(_written_by(func, args, kwargs), None) is not None
            if torch.Tag.nondeterministic_seeded in func.tags and (generator is None or in_place):
                raise ValueError(
                    f"`update` draws by {func}, which cannot be done before each call: draw new "
                    "tensors, from a `generator`."
                )
            if generator is not None:
                self._generators.setdefault(id(generator), (generator, generator.get_state()))
                draw = functools.partial(func, *args, **kwargs)
                # A tensor that the trace has not seen being made counts as one from outside.
                self.draws.append((draw, draw()))
                return self.draws[-1][1]
        return func(*args, **kwargs)

    def undo(self) -> None:
        """Put back what was there before."""
        for storage, before in self._written.values():
            storage.copy_(before)
        for generator, state in self._generators.values():
            generator.set_state(state)


@contextlib.contextmanager
def _rehearsing() -> Iterator[_Rehearsal]:
    """Undo what is rehearsed inside, also where it fails."""
    rehearsal = _Rehearsal()
    try:
        yield rehearsal
    finally:
        rehearsal.undo()


def _written_by(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation changes."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        yield from [value] if isinstance(value, Tensor) else value or ()


def _lift_tensors(traced: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """Turn the tensors that a trace has met, but not made, into its inputs.

    As constants, small ones would be compiled in with the values that they had.

    Returns:
        The function of those tensors, and the tensors.
    """
    inputs: list[Tensor] = []
    placeholders: dict[tuple[Any, ...], Any] = {}
    graph = traced.graph
    first, *_ = graph.nodes
    met = [node for node in graph.nodes if node.op == "get_attr"]
    for node in met:
        tensor = getattr(traced, node.target)
        if (place := _place(tensor)) not in placeholders:
            with graph.inserting_before(first):
                placeholders[place] = graph.placeholder(f"input_{len(inputs)}")
            inputs.append(_same_memory(tensor))
        node.replace_all_uses_with(placeholders[place])
    for node in met:
        graph.erase_node(node)
    # In a module without them: what it still had of its own would become inputs as well.
    return GraphModule(torch.nn.Module(), graph), inputs


def _into(draw: functools.partial[Tensor], place: Tensor) -> Callable[[], Tensor]:
    """Return the same draw to memory that is there, where torch can, and else with a copy."""
    out = getattr(draw.func.overloadpacket, f"{draw.func._overloadname}_out", None)  # type: ignore[attr-defined]
    if out is None:
        return lambda: place.copy_(draw())
    known = {argument.name for argument in out._schema.arguments}
    options = {name: value for name, value in draw.keywords.items() if name in known}
    return functools.partial(out, *draw.args, **options, out=place)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where and how a tensor lies: the same for a parameter and what it detached to."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _same_memory(tensor: Tensor) -> Tensor:
    """Return a tensor of the same memory that is neither a parameter nor a view of another.

    Views would be taken for what may overlap, and looked up in the tensor that they were made of.
    """
    storage, offset = tensor.untyped_storage(), tensor.storage_offset()
    return tensor.new_empty(0).set_(storage, offset, tensor.shape, tensor.stride())


def _compile(
    graph: GraphModule, inputs: list[Any], kind: str
) -> tuple[Callable[..., Sequence[Tensor]], list[ModuleType]]:
    """Return a function, and the modules that the compiler has written for it."""
    inductor = _torch_compiler()
    modules = importlib.import_module("torch._inductor.codecache").PyCodeCache.modules
    before = len(modules)
    _forget_operations()
    options = {
        **_OPTIONS[kind],
        # Its cache of graphs would be unpickled; machine code is found by its source's digest.
        "fx_graph_cache": False,
        "compile_threads": 1,
        # Of inputs, which are always the same, and of what our own operations return.
        "size_asserts": False,
        "alignment_asserts": False,
    }
    with torch.no_grad(), warnings.catch_warnings(), _uninterrupted():
        warnings.simplefilter("ignore")
        try:
            compiled: Callable[..., Sequence[Tensor]] = inductor.compile(
                graph, inputs, options=options
            )
        except (inductor.exc.InductorError, inductor.exc.CppCompileError) as error:
            found = _last_line(str(error))
            raise UserError(f"`--compile` failed ({found}): {_MEND}.") from error
    return compiled, modules[before:]


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all of its processes, from ending a C++ compiler.

    What this thread blocks is blocked in the processes that it starts. Another thread takes the
    signal, and Python's handler runs here as ever.
    """
    over = threading.Event()
    threading.Thread(target=over.wait, name="takes signals", daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        over.set()


def _forget_operations() -> None:
    """Let the compiler meet our operations for the first time.

    It registers each when it first does, and from then on treats otherwise what leads to one: a
    second function of the same graph would be another, or fail with a KeyError (torch 2.13).
    """
    lowering = importlib.import_module("torch._inductor.lowering")
    for operator in dispatch.operators.values():
        lowering.lowerings.pop(operator.known_as, None)
        lowering.fallbacks.discard(operator.known_as)
        lowering.needs_realized_inputs.discard(operator.known_as)


@functools.cache
def _torch_compiler() -> Any:
    """Import torch's compiler, which takes a second or two and decides where it keeps its files."""
    # Its own choice would be a folder that others can make before us.
    folder = cache_folder("torch", torch.__version__) or tempfile.mkdtemp(prefix="mtrl-")
    kept = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    codecache: Any = importlib.import_module("torch._inductor.codecache")
    # Of these it says that they are to be shared by all of its caches, and they still lie there.
    codecache._HEADER_DIR = str(Path(kept, "headers"))
    codecache._HEADER_LOCK_DIR = str(Path(kept, "headers", "locks"))
    return importlib.import_module("torch._inductor")
