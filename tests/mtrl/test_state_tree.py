"""States: every leaf survives the way to disk and back, and what would not is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtrl.checkpoint import load_checkpoint, save_checkpoint

_arrays = hnp.arrays(
    dtype=st.sampled_from(list("?bhilBHILefdF")),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
_tensors = st.one_of(
    _arrays.map(torch.from_numpy),
    hnp.arrays("i2", hnp.array_shapes()).map(lambda a: torch.from_numpy(a).view(torch.bfloat16)),
)
_scalars = (
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats() | st.text(max_size=5)
)
_keys = st.text(max_size=4) | st.sampled_from(["a", "a/b", "~", "dict", "tensor", "__class__"])
_states = st.dictionaries(
    _keys,
    st.recursive(
        _scalars | _arrays | _tensors,
        lambda node: st.lists(node, max_size=3) | st.dictionaries(_keys, node, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


def assert_identical(actual: object, expected: object) -> None:
    """Same types and same bits, all the way down."""
    assert type(actual) is type(expected)
    match expected:
        case dict():
            assert list(actual) == list(expected)
            for key in expected:
                assert_identical(actual[key], expected[key])
        case list():
            assert len(actual) == len(expected)
            for a, b in zip(actual, expected, strict=True):
                assert_identical(a, b)
        case torch.Tensor():
            assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
            assert raw_bytes(actual) == raw_bytes(expected)
        case np.ndarray():
            assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
            assert actual.tobytes() == expected.tobytes()
        case float():
            assert repr(actual) == repr(expected)  # tells -0.0 from 0.0, and NaN from the rest
        case _:
            assert actual == expected


def raw_bytes(tensor: torch.Tensor) -> bytes:
    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
        tensor = tensor.view(torch.int16)
    return tensor.numpy().tobytes()


@given(_states)
@settings(max_examples=100, deadline=None)
def test_every_state_comes_back_to_the_bit(tmp_path_factory, state):
    path = save_checkpoint(tmp_path_factory.mktemp("round"), state, env_steps=3)
    loaded = load_checkpoint(path)
    assert_identical(loaded.state, state)
    assert (loaded.label.env_steps, loaded.path) == (3, path)


def test_a_tuple_comes_back_as_a_list(tmp_path):
    path = save_checkpoint(tmp_path, {"a": (1, (torch.ones(1),))}, env_steps=0)
    assert_identical(load_checkpoint(path).state, {"a": [1, [torch.ones(1)]]})


def test_keys_that_would_collide_when_joined_stay_apart(tmp_path):
    state = {
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
        "": {"a": {"b": torch.full((1,), 2)}},
    }
    path = save_checkpoint(tmp_path, state, env_steps=0)
    assert_identical(load_checkpoint(path).state, state)


def test_views_and_shared_memory_are_stored_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    array = np.arange(6)
    array.flags.writeable = False
    state = {
        "whole": base,
        "again": base,
        "transposed": base.T,
        "column": base[:, 1],
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(base.clone()),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "reversed": array[::-1],
        "read_only": array,
    }
    loaded = load_checkpoint(save_checkpoint(tmp_path, state, env_steps=0)).state
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(loaded[name], value.detach()), name
        else:
            np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize(
    ("leaf", "fault"),
    [
        (object(), "`a/b` is a object"),
        ({1: 2}, "key 1"),
        (np.array(["x"]), "`a/b` cannot be stored"),
        (np.arange(3, dtype=">i4"), "`a/b` cannot be stored"),
        (np.zeros(2, dtype=complex), "`a/b`, torch.complex128"),
        (torch.eye(2).to_sparse(), "`a/b`.*sparse"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path, leaf, fault):
    with pytest.raises(TypeError, match=fault):
        save_checkpoint(tmp_path, {"a": {"b": leaf}}, env_steps=0)
    assert not list(tmp_path.iterdir())


def test_the_name_that_safetensors_reserves_is_refused(tmp_path):
    with pytest.raises(TypeError, match="__metadata__"):
        save_checkpoint(tmp_path, {"__metadata__": torch.ones(1)}, env_steps=0)
