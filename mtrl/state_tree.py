"""Training state as JSON plus a flat table of tensors, and back.

A state is a nested dict with `str` keys. Its leaves are tensors, NumPy arrays, `int` (of up to
4300 digits, Python's own limit), `float` (restored to the bit, except for the payload of a NaN),
`bool`, `str` and None. Lists and tuples may stand anywhere and come back as lists.
"""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .types import State

_Path = tuple[str, ...]


def pack(state: State) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a state into its structure with the scalars, and its arrays.

    Every object in the structure carries one tag ("dict", "tensor", "numpy" or "float"), so that
    no dict in the state can be mistaken for a leaf.

    Returns:
        What JSON can hold, and contiguous CPU tensors by their path ("agent/actor/0.weight"). They
        share memory with `state` where they can, but never with one another.

    Raises:
        TypeError: something has no form here; the message names its path.
    """
    arrays: dict[str, torch.Tensor] = {}
    structure = _pack(state, (), arrays)
    storages: set[int] = set()
    for name, tensor in arrays.items():
        # safetensors refuses tensors that share a storage.
        if tensor.untyped_storage().data_ptr() in storages:
            arrays[name] = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
    if "__metadata__" in arrays:
        raise TypeError("`__metadata__` cannot name an array: safetensors reserves it")
    return structure, arrays


def unpack(
    structure: Any,
    get_tensor: Callable[[str], torch.Tensor],
    device: torch.device | str = "cpu",
) -> Any:
    """Inverse of `pack`, with tensors moved to `device`.

    Raises:
        ValueError, TypeError, AttributeError: `structure` is not what `pack` makes.
    """
    if isinstance(structure, list):
        return [unpack(item, get_tensor, device) for item in structure]
    if not isinstance(structure, dict):
        return structure
    ((tag, content),) = structure.items()
    match tag:
        case "dict":
            return {key: unpack(value, get_tensor, device) for key, value in content.items()}
        case "tensor":
            return get_tensor(content).to(device)
        case "numpy":
            return get_tensor(content).numpy()
        case "float":
            return float(content)
    raise ValueError(f"unknown tag {tag!r}")


def fingerprint(state: State) -> str:
    """Return a SHA-256 over every bit of a state, by which two are seen to be equal."""
    structure, arrays = pack(state)
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True).encode())
    for name, tensor in sorted(arrays.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bits(tensor).numpy().tobytes())
    return digest.hexdigest()


def require_form(state: Any, form: Any, name: str = "state") -> None:
    """Refuse a state that has not the keys, types, shapes and dtypes of another.

    Copying broadcasts, and compiled optimizers read and write as far as the parameter is long: what
    is taken in has to be looked at before. Vectors of bytes, which generators' states are, may
    differ in length, as those of devices do.

    Raises:
        ValueError: Naming the entry.
    """
    if isinstance(form, dict):
        if not isinstance(state, dict) or state.keys() != form.keys():
            found = sorted(state) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"`{name}` should have {sorted(form)}, found {found}")
        for key, part in form.items():
            require_form(state[key], part, f"{name}/{key}")
    elif _form(state) != _form(form):
        raise ValueError(f"`{name}` should be {_form(form)}, found {_form(state)}")


def _form(leaf: Any) -> tuple[Any, ...]:
    if not isinstance(leaf, torch.Tensor | np.ndarray):
        return (type(leaf).__name__,)
    if leaf.dtype == torch.uint8 and leaf.ndim == 1:
        return (leaf.dtype, "any length")
    return leaf.dtype, tuple(leaf.shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """View a tensor as integers, in which NaN equals itself and -0.0 differs from 0.0."""
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(sizes[tensor.element_size()])


def _pack(node: Any, path: _Path, arrays: dict[str, torch.Tensor]) -> Any:
    match node:
        case None | bool() | str():
            return node
        case int():
            return int(node)
        case float():
            return float(node) if math.isfinite(node) else {"float": repr(float(node))}
        case torch.Tensor():
            arrays[_name(path)] = _storable(node, path)
            return {"tensor": _name(path)}
        case np.ndarray():
            arrays[_name(path)] = _storable(_as_tensor(node, path), path)
            return {"numpy": _name(path)}
        case list() | tuple():
            return [_pack(item, (*path, str(i)), arrays) for i, item in enumerate(node)]
        case dict():
            if strange := [key for key in node if not isinstance(key, str)]:
                raise TypeError(f"`{_name(path)}` has the key {strange[0]!r}: keys must be strings")
            return {"dict": {k: _pack(value, (*path, k), arrays) for k, value in node.items()}}
    raise TypeError(f"`{_name(path)}` is a {type(node).__name__}, which a checkpoint cannot hold")


def _name(path: _Path) -> str:
    # JSON Pointer's escapes keep the key "a/b" apart from "b" inside "a".
    return "/".join(key.replace("~", "~0").replace("/", "~1") for key in path)


def _as_tensor(array: NDArray[Any], path: _Path) -> torch.Tensor:
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:  # strings, objects, a foreign byte order
        raise TypeError(f"`{_name(path)}` cannot be stored: {error}") from error


def _storable(tensor: torch.Tensor, path: _Path) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.dtype in (torch.complex32, torch.complex128):
        raise TypeError(f"`{_name(path)}`, {tensor.dtype}, {tensor.layout}: unknown to safetensors")
    return tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
