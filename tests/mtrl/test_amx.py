"""Layers whose products go through tiles, against the same in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl import dispatch
from mtrl.activation import Activation
from mtrl.amx import instructions, operators
from mtrl.blocks import TaskBlocks
from mtrl.gradients import Tape, combine, gramian, jacobian
from mtrl.layers import linear

needs_tiles = pytest.mark.skipif(not instructions.available(), reason="the processor has no tiles")

COUNT = st.integers(1, 5)
# Within a block and beyond one, with something left over or not.
LENGTH = st.sampled_from([1, 2, 7, 31, 32, 33, 43, 64, 100])


def _normal(generator, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=generator).to(dtype)


def _low(tensor):
    """What a product of bf16 is made of, in float64."""
    return tensor.bfloat16().double()


def _layer(generator, E, K, I, D, one_hot):  # noqa: E741
    weight = _normal(generator, E, I + K * one_hot, D) / I**0.5
    return weight, _normal(generator, E, 1, D)


def _expected(inputs, weight, bias, norm, relu):
    """A layer in float64 but for its factors, whose gradients are those of the numbers given."""
    I = inputs.shape[-1]  # noqa: E741
    added = bias.double().unsqueeze(1)
    if weight.shape[1] > I:
        added = added + weight[:, I:, None].double()
    outputs = _low(inputs) @ _low(weight[:, None, :I]) + added
    if norm:
        outputs = torch.nn.functional.layer_norm(outputs, outputs.shape[-1:])
    return outputs.relu() if relu else outputs


@needs_tiles
@settings(max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 2), COUNT, st.sampled_from([1, 3, 16, 20, 33]), LENGTH, LENGTH),
    norm=st.booleans(),
    relu=st.booleans(),
    one_hot=st.booleans(),
    is_shared=st.booleans(),
    types=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
)
def test_a_layer_there_and_back(sizes, norm, relu, one_hot, is_shared, types):
    E, K, B, I, D = sizes  # noqa: E741
    generator = torch.Generator().manual_seed(sum(sizes))
    norm = norm and D > 2  # of two numbers it is a sign, whatever they are
    inputs = _normal(generator, 1 if is_shared else E, K, B, I, dtype=types[0]).expand(E, K, B, I)
    weight, bias = _layer(generator, E, K, I, D, one_hot)
    outputs, kept, inverse = operators.apply(inputs, weight, bias, norm, relu, True, types[1])
    assert outputs.dtype == types[1]
    expected = _expected(inputs, weight, bias, norm, relu)
    torch.testing.assert_close(outputs.double(), expected, rtol=2**-8, atol=1e-4)
    unkept, *nothing = operators.apply(inputs, weight, bias, norm, relu, False, types[1])
    assert torch.equal(unkept, outputs)
    assert not any(each.numel() for each in nothing)

    # As if what was computed had been exact: its own zeros and norms count.
    gradient = _normal(generator, E, K, B, D, dtype=types[1])
    reference = kept if norm else outputs
    passed = gradient.double() * (reference.double() > 0) if relu else gradient.double()
    if norm:
        rows = reference.double()
        along = (passed * rows).mean(-1, keepdim=True)
        less = passed - passed.mean(-1, keepdim=True) - rows * along
        passed = less * inverse.double().view(E, K, B, 1)
    found = operators.go_back(gradient, reference, inverse, weight, norm, relu, True, I, types[0])
    errors, sums, of_inputs = found
    assert (errors.dtype, of_inputs.dtype) == (torch.bfloat16, types[0])
    torch.testing.assert_close(errors.double(), passed, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(sums.double(), passed.sum(2), rtol=1e-4, atol=1e-4)
    back = errors.double() @ _low(weight[:, None, :I]).mT
    rounding = 2**-8 if types[0] == torch.bfloat16 else 1e-5
    torch.testing.assert_close(of_inputs.double(), back, rtol=rounding, atol=1e-4)
    arguments = gradient, reference, inverse, weight, norm, relu
    nothing, _, alone = operators.go_back(*arguments, False, I, types[0])
    assert torch.equal(alone, of_inputs)
    assert nothing.numel() == 0
    again, *_ = operators.go_back(*arguments, True, 0, types[0])
    assert torch.equal(again, errors)


@needs_tiles
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("K", [1, 3, 24, 25, 33, 50])
@pytest.mark.parametrize(("E", "B"), [(1, 1), (2, 16), (2, 20), (1, 33)])
@pytest.mark.parametrize(("I", "D"), [(43, 32), (32, 8), (70, 2), (5, 1)])
def test_inner_products_and_weighted_sums(rows, K, E, B, I, D, monkeypatch):  # noqa: E741
    monkeypatch.setattr(operators, "rows_are_cheaper", lambda *_: rows)
    generator = torch.Generator().manual_seed(K * B)
    inputs = _normal(generator, 1, K, B, I).expand(E, K, B, I)
    if D == 1:
        inputs, errors = inputs.bfloat16(), _normal(generator, E, K, B, D)
    else:
        errors = _normal(generator, E, K, B, D, dtype=torch.bfloat16)
    sums, weights = errors.float().sum(2), _normal(generator, K)
    J = (_low(inputs).mT @ errors.double()).flatten(2)
    expected = (J @ J.mT).sum(0) + (sums.double() @ sums.double().mT).sum(0)
    own = torch.diag(sums.double().square().sum((0, 2)))
    found = operators.gramian([inputs, inputs], [errors, errors], [sums, sums], [True, False])
    room = 2**-8 * expected.diagonal().max().item()
    torch.testing.assert_close(found.double(), 2 * expected + own, rtol=1e-3, atol=room)
    assert torch.equal(found, found.T)

    scaled = errors.float() * weights[:, None, None]
    scaled = scaled.double() if D == 1 else _low(scaled)
    combined = (_low(inputs).mT @ scaled).sum(1)
    first, second = operators.weighted_gradients(weights, [inputs, inputs], [errors, errors])
    assert torch.equal(first, second)
    torch.testing.assert_close(first.double(), combined, rtol=1e-4, atol=1e-3)


@needs_tiles
def test_more_rows_than_stay_nearby():
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 7, 200, 400, dtype=torch.bfloat16)
    errors = _normal(generator, 2, 7, 200, 90, dtype=torch.bfloat16)
    ones = torch.ones(7)
    (found,) = operators.weighted_gradients(ones, [inputs], [errors])
    expected = inputs.double().flatten(1, 2).mT @ errors.double().flatten(1, 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-2)
    shared = inputs[:1].expand_as(inputs)
    (found,) = operators.weighted_gradients(ones, [shared], [errors])
    expected = shared.double().flatten(1, 2).mT @ errors.double().flatten(1, 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-2)


@needs_tiles
@pytest.mark.parametrize("norm", [False, True])
def test_rows_of_zeros_are_left_out_and_what_is_not_a_number_is_not(norm):
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 3, 30, 40, dtype=torch.bfloat16)
    weight, bias = _layer(generator, 2, 3, 40, 50, one_hot=False)
    given = norm, True, True, torch.bfloat16
    outputs, kept, inverse = operators.apply(inputs, weight, bias, *given)
    gradient = _normal(generator, 2, 3, 30, 50, dtype=torch.bfloat16)
    gradient[0, :, ::2] = 0
    gradient[1] = 0
    gradient[0, 1, 3, 4] = torch.nan
    reference = kept if norm else outputs
    reference[0, 1, 3, 4] = 1
    weight[1] = torch.inf
    arguments = gradient, reference, inverse, weight, norm, True, True, 40, torch.bfloat16
    errors, sums, of_inputs = operators.go_back(*arguments)
    assert not of_inputs[0, :, ::2].any()
    assert not of_inputs[1].any()
    broken = of_inputs.isnan().any(-1).nonzero().tolist()
    assert broken == [[0, 1, 3]]
    assert sums.isnan().any(-1).nonzero().tolist() == [[0, 1]]
    assert errors.isnan().any(-1).nonzero().tolist() == broken


@needs_tiles
@pytest.mark.parametrize("relu", [False, True])
def test_an_infinite_output_whose_gradient_is_zero_is_only_looked_at(relu):
    reference = torch.tensor([torch.inf, 1, 2, 3]).view(1, 1, 1, 4)
    gradient, weight = torch.tensor([0.0, 1, 1, 1]).view(1, 1, 1, 4), torch.ones(1, 5, 4)
    given = gradient, reference, torch.empty(0), weight, False, relu, True, 5, torch.float32
    errors, sums, of_inputs = operators.go_back(*given)
    assert torch.equal(errors.float(), gradient)
    assert torch.equal(sums, gradient[:, :, 0])
    assert torch.equal(of_inputs, torch.full((1, 1, 1, 5), 3.0))


@needs_tiles
def test_what_is_given_may_lie_in_memory_in_any_way():
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 20, 3, 40).transpose(1, 2)
    weight, bias = _normal(generator, 2, 50, 40).mT, _normal(generator, 1, 1, 1).expand(2, 1, 50)
    options = True, True, True, torch.bfloat16
    assert not any(each.is_contiguous() for each in (inputs, weight, bias))
    found = operators.apply(inputs, weight, bias, *options)
    same = operators.apply(*(each.contiguous() for each in (inputs, weight, bias)), *options)
    assert all(map(torch.equal, found, same))
    _, kept, inverse = found
    gradient = _normal(generator, 2, 3, 20, 1, dtype=torch.bfloat16).expand(2, 3, 20, 50)
    options = True, True, True, 40, torch.float32
    found = operators.go_back(gradient, kept, inverse, weight, *options)
    given = gradient.contiguous(), kept, inverse, weight.contiguous()
    assert all(map(torch.equal, found, operators.go_back(*given, *options)))
    errors = found[0].transpose(1, 2).contiguous().transpose(1, 2)
    for weights in (torch.tensor([2.0]).expand(3), torch.arange(6.0).view(3, 2)[:, 1]):
        (found,) = operators.weighted_gradients(weights, [inputs], [errors])
        given = weights.contiguous(), [inputs.contiguous()], [errors.contiguous()]
        assert torch.equal(found, operators.weighted_gradients(*given)[0])
        (found,) = operators.weighted_gradients(weights.double(), [inputs], [errors])
        assert torch.equal(found, operators.weighted_gradients(*given)[0])


@needs_tiles
def test_results_have_their_types_whatever_torch_makes_by_default():
    generator = torch.Generator().manual_seed(0)
    inputs, errors = _normal(generator, 2, 3, 9, 40), _normal(generator, 2, 3, 9, 50).bfloat16()
    given = [inputs], [errors], [errors.float().sum(2)], [False]
    expected = operators.gramian(*given)
    (combined,) = operators.weighted_gradients(torch.ones(3), *given[:2])
    ones = torch.ones(3)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(operators.gramian(*given), expected)
        assert torch.equal(operators.weighted_gradients(ones, *given[:2])[0], combined)
    finally:
        torch.set_default_dtype(torch.float32)


@needs_tiles
@pytest.mark.parametrize(
    ("types", "result"),
    [
        ((torch.float64, torch.float32), None),
        ((torch.float16, torch.float32), None),
        ((torch.float32, torch.float64), None),
        ((torch.float32, torch.float64), torch.float32),
    ],
)
def test_other_types_go_another_way(types, result):
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 1, 3, 4, 5, dtype=types[0])
    weight, bias = (each.to(types[1]) for each in _layer(generator, 1, 3, 5, 6, one_hot=False))
    tape = Tape()
    outputs = linear(inputs, weight, bias, tape=tape, dtype=torch.bfloat16, result_dtype=result)
    expected = _expected(inputs.float(), weight, bias, norm=False, relu=False)
    torch.testing.assert_close(outputs.double(), expected, rtol=2**-7, atol=1e-2)
    J = jacobian(outputs.square().sum((0, 2, 3)), tape)
    assert gramian(J).shape == (3, 3)


@needs_tiles
def test_a_weight_that_changes_before_the_way_back_is_noticed():
    inputs, weight, bias = torch.ones(1, 1, 1, 4), torch.ones(1, 4, 5), torch.ones(1, 1, 5)
    outputs = linear(inputs.requires_grad_(), weight, bias, dtype=torch.bfloat16)
    weight.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def _learned(layers, inputs, dtype):
    """What a network of these layers gives, its Gramian and its combined gradients."""
    tape, hidden = Tape(), inputs
    for number, (weight, bias) in enumerate(layers):
        is_last = number == len(layers) - 1
        hidden = linear(
            hidden,
            weight,
            bias,
            activation=Activation(norm=not is_last, relu=not is_last),
            tape=tape,
            dtype=dtype,
            result_dtype=None if is_last else dtype,
            one_hot=number == 0,
        )
    J = jacobian(hidden.square().mean((0, 2, 3)), tape)
    weights = torch.linspace(0.5, 1.5, hidden.shape[1], dtype=inputs.dtype)
    return J, [hidden, gramian(J), *combine(weights, J).values()]


@needs_tiles
def test_a_network_learns_with_tiles_what_it_learns_without(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 10, 16, 43)
    layers = [
        _layer(generator, 2, 10, 43, 64, one_hot=True),
        _layer(generator, 2, 10, 64, 64, one_hot=False),
        _layer(generator, 2, 10, 64, 1, one_hot=False),
    ]
    double = [(weight.double(), bias.double()) for weight, bias in layers]
    _, exact = _learned(double, inputs.double(), torch.float64)
    distances = []
    for in_tiles in (True, False):
        monkeypatch.setattr("mtrl.amx.instructions.available", lambda in_tiles=in_tiles: in_tiles)
        J, found = _learned(layers, inputs, torch.bfloat16)
        assert all(layer.blocks.in_tiles is in_tiles for layer in J)
        pairs = zip(found, exact, strict=True)
        distances.append([((here - there).norm() / there.norm()).item() for here, there in pairs])
    assert max(distances[0]) < 0.05
    assert sum(distances[0]) < 1.3 * sum(distances[1])


def test_who_goes_this_way(monkeypatch):
    monkeypatch.setattr("mtrl.amx.instructions.available", lambda: True)
    inputs = torch.zeros(2, 10, 128, 400)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert operators.takes(inputs, 400, torch.bfloat16)
        assert not operators.takes(inputs, 400, torch.float32)
        assert not operators.takes(inputs[..., :0], 400, torch.bfloat16)
        with dispatch.portable():
            assert not operators.takes(inputs, 400, torch.bfloat16)
        with dispatch.traced():
            assert operators.takes(inputs, 400, torch.bfloat16)
        # What is large is left to a library, which can use many threads.
        torch.set_num_threads(3)
        assert not operators.takes(inputs, 400, torch.bfloat16)
        assert operators.takes(inputs[:, :, :16, :256], 256, torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr("mtrl.amx.instructions.available", lambda: False)
    assert not operators.takes(inputs, 400, torch.bfloat16)


@pytest.mark.parametrize(
    ("K", "B", "width", "rows"),
    [(10, 16, 256, False), (10, 32, 256, False), (10, 128, 400, True), (50, 16, 256, False)],
)
def test_the_cheaper_way(K, B, width, rows):
    assert operators.rows_are_cheaper(K, B, width, width) is rows


@pytest.mark.parametrize("takes_bf16", [False, True])
@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize("system", [False, True, None])
def test_processor_and_system_must_have_tiles(takes_bf16, has_tiles, system, monkeypatch):
    asked = []

    def ask():
        asked.append(True)
        return system

    monkeypatch.setattr("mtrl.tiles.takes_bf16", lambda: takes_bf16)
    monkeypatch.setattr("mtrl.tiles.has", lambda feature: {"amx-bf16": has_tiles}[feature])
    monkeypatch.setattr(torch.cpu, "_init_amx", ask, raising=False)
    if system is None:  # a torch that cannot ask
        monkeypatch.delattr(torch.cpu, "_init_amx")
    has_both = takes_bf16 and has_tiles
    assert instructions.available.__wrapped__() is (has_both and bool(system))
    assert bool(asked) is (has_both and system is not None)


def test_the_configuration_is_of_eight_full_tiles():
    numbers = instructions.CONFIGURATION
    assert numbers[0] == 1
    assert numbers[16:32].view(np.uint16).tolist() == [64] * 8
    assert numbers[48:56].tolist() == [16] * 8
    assert not numbers[1:16].any()
    assert not numbers[56:].any()


@needs_tiles
def test_a_column_of_errors_is_not_rounded():
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 3, 9, 40, dtype=torch.bfloat16)
    blocks = TaskBlocks(inputs, _normal(generator, 2, 3, 9, 1))
    assert blocks.in_tiles
    assert blocks.errors.dtype == torch.float32
    J = inputs.double().mT @ blocks.errors.double()
    weights = torch.tensor([0.5, -1.0, 2.0])
    expected = torch.einsum("k,ekid->eid", weights.double(), J)
    torch.testing.assert_close(blocks.combine(weights).double(), expected, rtol=1e-5, atol=1e-5)
    G = torch.einsum("ekid,elid->kl", J, J)
    torch.testing.assert_close(blocks.gramian_of_factors().double(), G, rtol=1e-5, atol=1e-4)
