"""How the engine's kernels are compiled: as one, whichever of its files they are in."""

from pathlib import Path

from mtrl.compiler import Compiler

_compiler = Compiler("kernels", Path(__file__).parent)

kernel = _compiler.kernel
c_function = _compiler.c_function
