"""Layers whose products go through tiles, against the same in float64."""

import itertools
import weakref
from dataclasses import replace

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
from mtrl.layers import Layer, chain

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


def _expected(inputs, weight, bias, norm, relu, rounds=True):
    """A layer in float64 but for its factors."""
    I = inputs.shape[-1]  # noqa: E741
    added = bias.double().unsqueeze(1)
    if weight.shape[1] > I:
        added = added + weight[:, I:, None].double()
    factors = inputs.double(), weight[:, None, :I].double()
    left, right = map(_low, factors) if rounds else factors
    outputs = left @ right + added
    if norm:
        outputs = torch.nn.functional.layer_norm(outputs, outputs.shape[-1:])
    return outputs.relu() if relu else outputs


def _passed_back(gradient, reference, inverse, norm, relu):
    """What comes of gradients of a layer's results, given what was kept of it, in float64."""
    passed = gradient * (reference.double() > 0) if relu else gradient
    if norm:
        rows = reference.double()
        along = (passed * rows).mean(-1, keepdim=True)
        less = passed - passed.mean(-1, keepdim=True) - rows * along
        passed = less * inverse.double().unsqueeze(-1)
    return passed


@needs_tiles
@settings(max_examples=80)
@given(
    sizes=st.tuples(st.integers(1, 2), COUNT, st.sampled_from([1, 3, 16, 20, 33])),
    widths=st.lists(LENGTH, min_size=2, max_size=4),
    norms=st.tuples(*[st.booleans()] * 3),
    relus=st.tuples(*[st.booleans()] * 3),
    own=st.tuples(*[st.booleans()] * 3),
    is_shared=st.booleans(),
    types=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16])] * 2),
)
def test_layers_there_and_back(sizes, widths, norms, relus, own, is_shared, types):
    _check_layers(sizes, widths, norms, relus, own, is_shared, types)


@needs_tiles
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("last", [1, 9])
def test_layers_whose_weights_do_not_stay_nearby(norm, last):
    widths, norms, relus = [43, 700, 700, last], (norm, norm, False), (True, True, False)
    own, types = (True, False, False), (torch.float32, torch.float32)
    _check_layers((2, 3, 130), widths, norms, relus, own, True, types)


@needs_tiles
def test_a_column_with_rows_of_many_tasks_own():
    own, types = (False, True, False), (torch.float32, torch.float32)
    _check_layers((1, 300, 1), [8, 8, 1], (False,) * 3, (True, False, False), own, True, types)


def _check_layers(sizes, widths, norms, relus, own, is_shared, types):
    E, K, B = sizes
    generator = torch.Generator().manual_seed(sum(sizes) + sum(widths))
    # No hidden layer is of one column, a last one has neither norm nor ReLU; and what is normalised
    # of two numbers is a sign, whatever they are.
    widths = [widths[0], *(max(width, 2) for width in widths[1:-1]), widths[-1]]
    pairs = list(itertools.pairwise(widths))
    if len(pairs) == 1 and widths[-1] == 1:
        pairs = [(widths[0], 2)]
    count, last = len(pairs), pairs[-1][1]
    relus = [relu and pair[1] > 1 for relu, pair in zip(relus, pairs, strict=False)]
    norms = [norm and pair[1] > 2 for norm, pair in zip(norms, pairs, strict=False)]
    I = widths[0]  # noqa: E741
    inputs = _normal(generator, 1 if is_shared else E, K, B, I, dtype=types[0]).expand(E, K, B, I)
    layers = [_layer(generator, E, K, *pair, has) for pair, has in zip(pairs, own, strict=False)]
    weights, biases = (list(each) for each in zip(*layers, strict=True))
    # Values are fp32.
    result_type = types[1] if last > 1 else torch.float32
    given = weights, biases, norms, relus
    found = operators.apply(inputs, *given, operators.ALL, result_type)
    results, rows, inverses = operators.kept(found, norms, operators.ALL)
    assert results[-1].dtype == result_type
    entered = [inputs, *results]
    for n, (weight, bias) in enumerate(layers):
        is_column = pairs[n][1] == 1
        expected = _expected(entered[n], weight, bias, norms[n], relus[n], rounds=not is_column)
        torch.testing.assert_close(results[n].double(), expected, rtol=2**-8, atol=1e-4)
        assert (rows[n] is not None) is norms[n]
    of_norms = iter(() if inverses is None else inverses)
    inverses = [next(of_norms) if norm else None for norm in norms]
    (unkept,) = operators.apply(inputs, *given, operators.NOTHING, result_type)
    assert torch.equal(unkept, results[-1])
    less = operators.apply(inputs, *given, operators.FOR_INPUTS, result_type)
    assert torch.equal(less[0], results[-1])
    some, same_rows, same_inverses = operators.kept(less, norms, operators.FOR_INPUTS)
    for result, same, norm in zip(some[:-1], results, norms, strict=False):
        assert result is None if norm else torch.equal(result, same)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(rows, same_rows, strict=True))
    assert same_inverses is None if not any(norms) else len(same_inverses) == sum(norms)
    if any(norms):
        assert torch.equal(
            same_inverses, torch.stack([each for each in inverses if each is not None])
        )

    # As if what was computed had been exact: its own zeros and norms count.
    gradient = _normal(generator, E, K, B, last, dtype=result_type)
    gradient[:, :, 1::3] = 0
    options = operators.ALL, I, types[0]
    of_inputs, *rest = operators.go_back(gradient, found, weights, norms, relus, *options)
    sums, errors = rest[:count], [*rest[count:], gradient]
    assert of_inputs.dtype == types[0]
    passing = gradient.double()
    for n in reversed(range(count)):
        reference = rows[n] if norms[n] else results[n]
        passed = _passed_back(passing, reference, inverses[n], norms[n], relus[n])
        rounding = 2**-8 if pairs[n][1] > 1 else 0
        torch.testing.assert_close(errors[n].double(), passed, rtol=rounding, atol=1e-4)
        torch.testing.assert_close(sums[n].double(), passed.sum(2), rtol=1e-4, atol=1e-3)
        weight = weights[n][:, None, : pairs[n][0]]
        passing = errors[n].double() @ (_low(weight) if pairs[n][1] > 1 else weight.double()).mT
    rounding = 2**-8 if types[0] == torch.bfloat16 else 1e-5
    torch.testing.assert_close(of_inputs.double(), passing, rtol=rounding, atol=1e-4)
    options = operators.FOR_INPUTS, I, types[0]
    (alone,) = operators.go_back(gradient, less, weights, norms, relus, *options)
    assert torch.equal(alone, of_inputs)
    again = operators.go_back(gradient, found, weights, norms, relus, operators.ALL, 0, types[0])
    assert all(map(torch.equal, again, rest))


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
    options = [norm], [True], operators.ALL
    found = operators.apply(inputs, [weight], [bias], *options, torch.bfloat16)
    gradient = _normal(generator, 2, 3, 30, 50, dtype=torch.bfloat16)
    gradient[0, :, ::2] = 0
    gradient[1] = 0
    gradient[0, 1, 3, 4] = torch.nan
    found[1 if norm else 0][0, 1, 3, 4] = 1
    weight[1] = torch.inf
    given = gradient, found, [weight], *options
    of_inputs, sums, errors = operators.go_back(*given, 40, torch.bfloat16)
    assert not of_inputs[0, :, ::2].any()
    assert not of_inputs[1].any()
    broken = of_inputs.isnan().any(-1).nonzero().tolist()
    assert broken == [[0, 1, 3]]
    assert sums.isnan().any(-1).nonzero().tolist() == [[0, 1]]
    assert errors.isnan().any(-1).nonzero().tolist() == broken


@needs_tiles
@pytest.mark.parametrize("last", [1, 2])
def test_what_is_not_a_number_stays_in_its_row(last):
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 1, 2, 20, 40)
    pairs = (40, 50), (50, 50), (50, last)
    layers = [Layer(*_layer(generator, 1, 2, *pair, one_hot=False)) for pair in pairs]
    inputs[0, 1, 3, 39] = torch.nan
    tape = Tape()
    outputs = chain(inputs, layers, tape=tape, dtype=torch.bfloat16)
    assert outputs.isnan().any(-1).nonzero().tolist() == [[0, 1, 3]]
    J = jacobian(outputs.square().sum((0, 2, 3)), tape)
    for layer in J:
        assert layer.sums.isnan().any(-1).nonzero().tolist() == [[0, 1]]
        assert layer.blocks.errors.isnan().any(-1).nonzero().tolist() == [[0, 1, 3]]


@needs_tiles
@pytest.mark.parametrize("relu", [False, True])
def test_an_infinite_output_whose_gradient_is_zero_is_only_looked_at(relu):
    output = torch.tensor([torch.inf, 1, 2, 3]).view(1, 1, 1, 4)
    gradient, weight = torch.tensor([0.0, 1, 1, 1]).view(1, 1, 1, 4), torch.ones(1, 5, 4)
    given = gradient, [output], [weight], [False], [relu], operators.ALL, 5, torch.float32
    of_inputs, sums, errors = operators.go_back(*given)
    assert torch.equal(errors.float(), gradient)
    assert torch.equal(sums, gradient[:, :, 0])
    assert torch.equal(of_inputs, torch.full((1, 1, 1, 5), 3.0))


@needs_tiles
def test_an_infinite_hidden_result_whose_gradient_is_zero_is_only_looked_at():
    hidden = torch.tensor([torch.inf, 1, 0, 3]).bfloat16().view(1, 1, 1, 4)
    first, second = torch.ones(1, 5, 4), torch.tensor([0.0, 1, 1, 1]).view(1, 4, 1).expand(1, 4, 2)
    output, gradient = torch.ones(1, 1, 1, 2), torch.tensor([1.0, 0]).view(1, 1, 1, 2)
    options = [False] * 2, [True, False], operators.ALL, 5, torch.float32
    given = gradient, [output, hidden], [first, second]
    of_inputs, *_, errors, _ = operators.go_back(*given, *options)
    assert errors.flatten().tolist() == [0, 1, 0, 1]
    assert torch.equal(of_inputs, torch.full((1, 1, 1, 5), 2.0))


@needs_tiles
def test_what_is_given_may_lie_in_memory_in_any_way():
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 20, 3, 40).transpose(1, 2)
    weight, bias = _normal(generator, 2, 50, 40).mT, _normal(generator, 1, 1, 1).expand(2, 1, 50)
    options = [True], [True], operators.ALL
    assert not any(each.is_contiguous() for each in (inputs, weight, bias))
    found = operators.apply(inputs, [weight], [bias], *options, torch.bfloat16)
    given = inputs.contiguous(), [weight.contiguous()], [bias.contiguous()]
    assert all(map(torch.equal, found, operators.apply(*given, *options, torch.bfloat16)))
    gradient = _normal(generator, 2, 3, 20, 1, dtype=torch.bfloat16).expand(2, 3, 20, 50)
    rest = *options, 40, torch.float32
    gradients = operators.go_back(gradient, found, [weight], *rest)
    same = operators.go_back(gradient.contiguous(), found, [weight.contiguous()], *rest)
    assert all(map(torch.equal, gradients, same))
    errors = gradients[-1].transpose(1, 2).contiguous().transpose(1, 2)
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
    "types",
    [
        (torch.float64, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_other_types_go_another_way(types):
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 1, 3, 4, 5, dtype=types[0])
    weight, bias = (each.to(types[1]) for each in _layer(generator, 1, 3, 5, 6, one_hot=False))
    tape = Tape()
    outputs = chain(inputs, [Layer(weight, bias)], tape=tape, dtype=torch.bfloat16)
    expected = _expected(inputs.float(), weight, bias, norm=False, relu=False)
    torch.testing.assert_close(outputs.double(), expected, rtol=2**-7, atol=1e-2)
    J = jacobian(outputs.square().sum((0, 2, 3)), tape)
    assert gramian(J).shape == (3, 3)


@needs_tiles
@pytest.mark.parametrize("widths", [(5, 1), (5, 1, 6), (5, 6, 1, 1)])
def test_columns_that_kernels_do_not_know_go_another_way(widths):
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 3, 4, widths[0])
    pairs = itertools.pairwise(widths)
    layers = [Layer(*_layer(generator, 2, 3, *pair, one_hot=False)) for pair in pairs]
    tape, expected = Tape(), inputs.double()
    outputs = chain(inputs, layers, tape=tape, dtype=torch.bfloat16)
    for layer in layers:
        expected = expected @ layer.weight[:, None].double() + layer.bias.unsqueeze(1).double()
    torch.testing.assert_close(outputs.double(), expected, rtol=0.1, atol=0.1)
    J = jacobian(outputs.square().sum((0, 2, 3)), tape)
    assert gramian(J).isfinite().all()


@pytest.fixture
def calls(monkeypatch):
    """What is handed to kernels of layers."""
    made, apply = [], operators.apply

    def noting(*args):
        made.append(args)
        return apply(*args)

    monkeypatch.setattr(operators, "apply", noting)
    return made


@needs_tiles
def test_only_layers_that_kernels_know_go_this_way(calls):
    generator = torch.Generator().manual_seed(0)
    inputs, dtype = _normal(generator, 1, 3, 4, 5), torch.bfloat16
    first = Layer(*_layer(generator, 1, 3, 5, 6, one_hot=True), one_hot=True)
    value = Layer(*_layer(generator, 1, 3, 6, 1, one_hot=False))
    chain(inputs, [first, value], dtype=dtype)
    assert len(calls) == 1
    chain(inputs, [first, replace(value, activation=Activation(relu=True))], dtype=dtype)
    chain(inputs, [Layer(first.weight[:, :5].bfloat16(), first.bias)], dtype=dtype)
    chain(inputs, [Layer(first.weight[:, :5], first.bias.double())], dtype=dtype)
    more = Layer(*_layer(generator, 1, 10, 5, 6, one_hot=True), one_hot=True)
    chain(inputs, [more], dtype=dtype)  # as many tasks' rows are there, of more
    chain(inputs[..., :0], [Layer(first.weight[:, 5:], first.bias, one_hot=True)], dtype=dtype)
    chain(inputs, [first, value])
    assert len(calls) == 1


@needs_tiles
def test_with_many_threads_the_largest_layer_decides(calls, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    inputs = _normal(generator, 2, 3, 4, 5)
    pairs = itertools.pairwise((5, 40, 6, 2))
    layers = [Layer(*_layer(generator, 2, 3, *pair, one_hot=False)) for pair in pairs]
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    for most, count in ((2 * 3 * 4 * 40 * 6, 1), (2 * 3 * 4 * 40 * 6 - 1, 0)):
        monkeypatch.setattr(operators, "MOST_FOR_ONE_THREAD", most)
        calls.clear()
        chain(inputs, layers, dtype=torch.bfloat16)
        assert len(calls) == count


@needs_tiles
def test_a_tape_goes_with_its_last_reference():
    """Of chains that follow each other the second's inputs have a history, which leads to it."""
    generator, tape = torch.Generator().manual_seed(0), Tape()
    one, other = (Layer(*_layer(generator, 1, 3, 5, 5, one_hot=False)) for _ in range(2))
    inputs = _normal(generator, 1, 3, 4, 5)
    hidden = inputs + chain(inputs, [one], tape=tape, dtype=torch.bfloat16)
    outputs = chain(hidden, [other], tape=tape, dtype=torch.bfloat16)
    J = jacobian(outputs.square().sum((0, 2, 3)), tape)
    assert len(J) == 2
    assert not any(layer.blocks.inputs.requires_grad for layer in J)
    alive = weakref.ref(tape)
    del tape, hidden, outputs, J
    assert alive() is None


@needs_tiles
def test_a_weight_that_changes_before_the_way_back_is_noticed():
    inputs, weight, bias = torch.ones(1, 1, 1, 4), torch.ones(1, 4, 5), torch.ones(1, 1, 5)
    outputs = chain(inputs.requires_grad_(), [Layer(weight, bias)], dtype=torch.bfloat16)
    weight.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()


def _learned(layers, inputs, dtype):
    """What a network of these layers gives, its Gramian and its combined gradients."""
    *before, last = layers
    activation = Activation(norm=True, relu=True)
    hidden = [Layer(*layer, activation, number == 0) for number, layer in enumerate(before)]
    tape = Tape()
    outputs = chain(inputs, [*hidden, Layer(*last)], tape=tape, dtype=dtype)
    J = jacobian(outputs.square().mean((0, 2, 3)), tape)
    weights = torch.linspace(0.5, 1.5, outputs.shape[1], dtype=inputs.dtype)
    return J, [outputs, gramian(J), *combine(weights, J).values()]


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
    inputs, large = torch.zeros(2, 10, 128, 400), 2 * 1280 * 400 * 400
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert operators.takes(inputs, large, torch.bfloat16)
        assert not operators.takes(inputs, large, torch.float32)
        assert not operators.takes(inputs, 0, torch.bfloat16)
        with dispatch.portable():
            assert not operators.takes(inputs, large, torch.bfloat16)
        with dispatch.traced():
            assert operators.takes(inputs, large, torch.bfloat16)
        # What is large is left to a library, which can use many threads.
        torch.set_num_threads(3)
        assert not operators.takes(inputs, large, torch.bfloat16)
        assert operators.takes(inputs, large // 20, torch.bfloat16)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr("mtrl.amx.instructions.available", lambda: False)
    assert not operators.takes(inputs, large, torch.bfloat16)


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
