"""Stacked networks against ordinary `nn.Linear` ones, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from agents.networks import MLP
from mtrl.gradients import Jacobian, Tape, combine, gramian, jacobian, rows

pytestmark = pytest.mark.usefixtures("both_ways")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _mlp(sizes: list[int], *, seed: int = 0, dtype: torch.dtype = torch.float64, **options) -> MLP:
    options = {"num_tasks": 0} | options
    return MLP(sizes, generator=_generator(seed), dtype=dtype, **options)


def _rows(mlp: MLP, losses: Tensor, tape: Tape) -> dict[str, Tensor]:
    by_parameter = rows(jacobian(losses, tape))
    return {name: by_parameter[parameter] for name, parameter in mlp.named_parameters()}


class _Ordinary(nn.Module):
    """One member of a stacked network, made of torch's own layers, with the same numbers."""

    def __init__(self, mlp: MLP, member: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
            layer = nn.Linear(*weight.shape[1:]).to(weight.dtype)
            layer.weight.data = weight.data[member].T.clone()
            layer.bias.data = bias.data[member, 0].clone()
            self.layers.append(layer)
        widths = [layer.out_features for layer in self.layers[:-1]]
        kind = nn.Identity if not mlp.layer_norm else nn.LayerNorm
        self.norms = [kind(width, elementwise_affine=False) for width in widths]
        self.residual = mlp.residual

    def forward(self, x: Tensor) -> Tensor:
        *affine, output = self.layers
        pairs = zip(affine, self.norms, strict=True)
        hidden = [lambda x, f=f, norm=norm: norm(f(x)) for f, norm in pairs]
        if not self.residual:
            for layer in hidden:
                x = layer(x).relu()
            return output(x)
        x = hidden[0](x).relu()
        for first, second in zip(hidden[1::2], hidden[2::2], strict=True):
            x = x + second(first(x).relu())
        return output(x)


def _ordinary(mlp: MLP) -> list[_Ordinary]:
    return [_Ordinary(mlp, member) for member in range(len(mlp.weights[0]))]


def _loss(outputs: Tensor, k: int) -> Tensor:
    """A loss that differs between tasks and looks at every output."""
    return (outputs * (1 + k)).sin().square().mean()


def _stack(networks: list[_Ordinary], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Gradients of the ordinary networks' parameters, in the stacked network's layout."""
    depth = len(gradients) // len(networks) // 2
    members = [gradients[2 * depth * e : 2 * depth * (e + 1)] for e in range(len(networks))]
    stacked = {}
    for layer in range(depth):
        stacked[f"weights.{layer}"] = torch.stack([m[2 * layer].T for m in members])
        stacked[f"biases.{layer}"] = torch.stack([m[2 * layer + 1][None] for m in members])
    return stacked


@settings(max_examples=40)
@given(
    K=st.integers(1, 5),
    B=st.integers(1, 6),
    E=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    layer_norm=st.booleans(),
    shared_inputs=st.booleans(),
    one_hot=st.booleans(),
)
def test_per_task_gradients_are_those_of_separate_backward_passes(
    K, B, E, sizes, layer_norm, shared_inputs, one_hot
):
    _compare_gradients(K, B, E, sizes, layer_norm, shared_inputs, one_hot, residual=False)


@settings(max_examples=40)
@given(
    K=st.integers(1, 5),
    B=st.integers(1, 6),
    E=st.integers(1, 3),
    width=st.integers(1, 9),
    blocks=st.integers(0, 3),
    layer_norm=st.booleans(),
    one_hot=st.booleans(),
)
def test_so_are_those_of_residual_networks(K, B, E, width, blocks, layer_norm, one_hot):
    sizes = [4, *[width] * (1 + 2 * blocks), 3]
    _compare_gradients(K, B, E, sizes, layer_norm, True, one_hot, residual=True)


def _compare_gradients(K, B, E, sizes, layer_norm, shared_inputs, one_hot, *, residual):
    num_tasks = K if one_hot else 0
    options = {"members": E, "layer_norm": layer_norm, "residual": residual}
    mlp = _mlp(sizes, seed=K + B, num_tasks=num_tasks, **options)
    shape = (1 if shared_inputs else E, K, B, sizes[0])
    inputs = torch.randn(shape, generator=_generator(E), dtype=torch.float64)
    networks = _ordinary(mlp)
    parameters = [p for network in networks for p in network.parameters()]
    per_member = inputs.expand(E, K, B, sizes[0])
    if one_hot:
        tasks = torch.eye(K, dtype=torch.float64)[None, :, None].expand(E, K, B, K)
        per_member = torch.cat([per_member, tasks], dim=-1)

    tape = Tape()
    outputs = mlp(inputs, tape)
    J = _rows(mlp, torch.stack([_loss(outputs[:, k], k) for k in range(K)]), tape)
    torch.testing.assert_close(mlp(inputs), outputs, rtol=0, atol=0)
    for k in range(K):
        expected = torch.stack([network(per_member[e, k]) for e, network in enumerate(networks)])
        torch.testing.assert_close(outputs[:, k], expected, rtol=1e-10, atol=1e-10)
        expected_rows = _stack(networks, torch.autograd.grad(_loss(expected, k), parameters))
        assert set(J) == set(expected_rows)
        for name, row in expected_rows.items():
            torch.testing.assert_close(J[name][k], row, rtol=1e-9, atol=1e-10)


@settings(max_examples=20)
@given(K=st.integers(1, 4), B=st.integers(1, 5), E=st.integers(1, 3), size=st.integers(1, 9))
def test_so_are_those_of_task_embeddings(K, B, E, size):
    mlp = _mlp([4, 7, 3], seed=K + B, num_tasks=K, members=E, embedding_size=size)
    bias = mlp.embedding_bias
    bias.data = torch.randn(bias.shape, generator=_generator(1), dtype=torch.float64)
    inputs = torch.randn(1, K, B, 4, generator=_generator(E), dtype=torch.float64)
    tape = Tape()
    outputs = mlp(inputs, tape)
    layers = jacobian(torch.stack([_loss(outputs[:, k], k) for k in range(K)]), tape)
    J = rows(layers)
    tasks = torch.eye(K, dtype=torch.float64)
    expected_rows = []
    for k in range(K):
        embedding = mlp.embedding[:, k] + bias[:, 0]
        entering = [inputs[:, k].expand(E, -1, -1), embedding[:, None].expand(-1, B, -1)]
        hidden = torch.cat([*entering, tasks[k].expand(E, B, -1)], dim=-1)
        hidden = (hidden @ mlp.weights[0] + mlp.biases[0]).relu()
        expected = hidden @ mlp.weights[1] + mlp.biases[1]
        torch.testing.assert_close(outputs[:, k], expected, rtol=1e-10, atol=1e-10)
        gradients = torch.autograd.grad(_loss(expected, k), list(mlp.parameters()))
        for parameter, gradient in zip(mlp.parameters(), gradients, strict=True):
            torch.testing.assert_close(J[parameter][k], gradient, rtol=1e-8, atol=1e-9)
        expected_rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    flat = torch.stack(expected_rows)
    torch.testing.assert_close(gramian(layers), flat @ flat.T, rtol=1e-8, atol=1e-9)
    weights = torch.arange(1.0, K + 1, dtype=torch.float64)
    for combined in (combine(weights, layers), combine(weights, _jacobian_again(mlp, inputs))):
        found = torch.cat([combined[parameter].flatten() for parameter in mlp.parameters()])
        torch.testing.assert_close(found, weights @ flat, rtol=1e-8, atol=1e-9)


def _jacobian_again(mlp: MLP, inputs: Tensor) -> Jacobian:
    """A Jacobian of which nothing was written out."""
    tape = Tape()
    outputs = mlp(inputs, tape)
    losses = [_loss(outputs[:, k], k) for k in range(outputs.shape[1])]
    return jacobian(torch.stack(losses), tape)


def test_tasks_are_told_apart_by_their_embeddings_alone():
    mlp = _mlp([4, 7, 3], num_tasks=2, embedding_size=1)
    mlp.weights[0].data[:, 5:] = 0  # what the one-hot selects
    one, other = mlp(torch.ones(1, 2, 1, 4, dtype=torch.float64))[0, :, 0]
    assert not torch.allclose(one, other)


def test_an_embedding_of_no_tasks_is_refused():
    with pytest.raises(ValueError, match="no tasks to learn 5 numbers for"):
        _mlp([4, 7, 3], num_tasks=0, embedding_size=5)


@pytest.mark.parametrize("embedding_size", [0, 5])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_bfloat16_is_close_and_returns_float32(layer_norm, embedding_size):
    def run(dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        mlp = _mlp(
            [20, 64, 64, 3],
            num_tasks=4,
            members=2,
            embedding_size=embedding_size,
            layer_norm=layer_norm,
            dtype=dtype,
        )
        tape = Tape()
        inputs = torch.randn(1, 4, 64, 20, generator=_generator(1))
        outputs = mlp(inputs, tape)
        return outputs, _rows(mlp, (outputs + 1).square().mean(dim=(0, 2, 3)), tape)

    exact, exact_gradients = run(torch.float32)
    rounded, rounded_gradients = run(torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.02
    for name, gradient in exact_gradients.items():
        assert rounded_gradients[name].dtype == torch.float32
        assert (rounded_gradients[name] - gradient).norm() / gradient.norm() < 0.05, name


def test_initial_weights_are_spread_like_those_of_nn_linear():
    mlp = _mlp([100, 400, 400], members=2)
    for layer, fan_in in enumerate((100, 400)):
        reference = nn.Linear(fan_in, 400)
        for values, expected in (
            (mlp.weights[layer], reference.weight),
            (mlp.biases[layer], reference.bias),
        ):
            bound = fan_in**-0.5
            for drawn in (values.detach(), expected.detach()):
                assert 0.98 * bound < drawn.abs().max() <= bound
                assert drawn.std() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert not torch.equal(mlp.weights[0][0], mlp.weights[0][1])


def test_initial_weights_follow_the_generator():
    one, same, other = (_mlp([3, 8, 1], seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
