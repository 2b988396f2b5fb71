"""Per-task gradients against K ordinary backward passes."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtrl import dispatch
from mtrl.blocks import TaskBlocks
from mtrl.device import has_bf16
from mtrl.gradients import Tape, combine, gramian, jacobian, rows
from mtrl.jacobian import rows_and_gramian, weighted_sums
from mtrl.layers import linear
from mtrl.tiles import takes_bf16

pytestmark = pytest.mark.usefixtures("both_ways")

SMALL = st.integers(1, 5)


class TwoLayers(nn.Module):
    """E networks of two layers, built on `linear`."""

    def __init__(self, E: int, sizes: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__()
        I, H, D = sizes  # noqa: E741
        self.first = nn.Parameter(_normal(generator, E, I, H))
        self.first_bias = nn.Parameter(_normal(generator, E, 1, H))
        self.second = nn.Parameter(_normal(generator, E, H, D))
        self.second_bias = nn.Parameter(_normal(generator, E, 1, D))

    def forward(
        self, inputs: Tensor, tape: Tape | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        hidden = linear(inputs, self.first, self.first_bias, tape=tape, dtype=dtype).tanh()
        return linear(hidden, self.second, self.second_bias, tape=tape, dtype=dtype)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _task_loss(outputs: Tensor, k: int) -> Tensor:
    return (outputs * (k + 1)).sin().square().sum()


def _losses(outputs: Tensor) -> Tensor:
    return torch.stack([_task_loss(outputs[:, k], k) for k in range(outputs.shape[1])])


def _one_pass_per_task(module: TwoLayers, inputs: Tensor) -> dict[str, Tensor]:
    """What is expected: ordinary products, and one backward pass for each task."""
    rows: list[tuple[Tensor, ...]] = []
    for k in range(inputs.shape[1]):
        hidden = (inputs[:, k] @ module.first + module.first_bias).tanh()
        outputs = hidden @ module.second + module.second_bias
        rows.append(torch.autograd.grad(_task_loss(outputs, k), list(module.parameters())))
    names = [name for name, _ in module.named_parameters()]
    return {name: torch.stack(column) for name, *column in zip(names, *rows, strict=True)}


def _rows(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The Jacobian by one backward pass, written out, by parameter name."""
    tape = Tape()
    by_parameter = rows(jacobian(_losses(module(inputs, tape)), tape))
    return {name: by_parameter[parameter] for name, parameter in module.named_parameters()}


def _joined(J: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten(start_dim=1) for gradient in J.values()], dim=1)


@pytest.fixture
def example(generator):
    """A module, inputs for 4 tasks and the Jacobian of their losses."""
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3)
    tape = Tape()
    return module, inputs, jacobian(_losses(module(inputs, tape)), tape)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@settings(max_examples=40)
@given(K=SMALL, B=SMALL, E=st.integers(1, 3), sizes=st.tuples(SMALL, SMALL, SMALL))
def test_jacobian_is_one_backward_pass_per_task(K, B, E, sizes):
    generator = torch.Generator().manual_seed(K + 10 * B + 100 * E)
    module = TwoLayers(E, sizes, generator)
    inputs = _normal(generator, E, K, B, sizes[0])
    expected = _one_pass_per_task(module, inputs)
    torch.testing.assert_close(_rows(module, inputs), expected, rtol=1e-11, atol=1e-11)


def test_module_itself_receives_no_gradient(example):
    module, _, _ = example
    assert all(parameter.grad is None for parameter in module.parameters())


def test_tape_does_not_change_the_forward_pass(generator):
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3)
    taped = module(inputs, Tape())
    assert torch.equal(taped, module(inputs))
    expected = (inputs @ module.first[:, None] + module.first_bias[:, None]).tanh()
    expected = expected @ module.second[:, None] + module.second_bias[:, None]
    torch.testing.assert_close(taped, expected, rtol=1e-12, atol=1e-12)


def test_gradient_reaches_the_inputs(generator):
    module = TwoLayers(2, (3, 5, 2), generator)
    inputs = _normal(generator, 2, 4, 6, 3).requires_grad_()
    hidden = (inputs @ module.first[:, None] + module.first_bias[:, None]).tanh()
    outputs = hidden @ module.second[:, None] + module.second_bias[:, None]
    expected = torch.autograd.grad(_losses(outputs).sum(), inputs)[0]
    actual = torch.autograd.grad(_losses(module(inputs, Tape())).sum(), inputs)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e100])
def test_what_one_task_sees_stays_in_its_row(example, value):
    module, inputs, _ = example
    J = _rows(module, inputs)
    inputs = inputs.clone()
    inputs[:, 2, 3, 1] = value
    changed = _rows(module, inputs)
    others = [0, 1, 3]
    for name in J:
        assert torch.equal(changed[name][others], J[name][others])
    assert not torch.equal(changed["first"][2], J["first"][2])


@pytest.mark.parametrize("way", ["factors", "kept", "forgotten"])
@settings(max_examples=30)
@given(
    K=st.integers(1, 25),
    B=SMALL,
    E=st.integers(1, 3),
    sizes=st.tuples(SMALL, SMALL, SMALL),
)
def test_gramian_and_combination_are_those_of_the_jacobian(way, K, B, E, sizes):
    """In all ways, whichever the shapes would choose."""
    generator = torch.Generator().manual_seed(K + 100 * B)
    module = TwoLayers(E, sizes, generator)
    inputs = _normal(generator, E, K, B, sizes[0])
    weights = _normal(generator, K)
    expected = _one_pass_per_task(module, inputs)
    tape = Tape()
    J = jacobian(_losses(module(inputs, tape)), tape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskBlocks, "multiplies_out", lambda self: way != "factors")
        patch.setattr("mtrl.jacobian.LARGE", math.inf if way == "kept" else 0)
        G, combined = gramian(J), combine(weights, J)
    joined = _joined(expected)
    torch.testing.assert_close(G, joined @ joined.T, rtol=1e-10, atol=1e-10)
    assert set(combined) == set(module.parameters())
    for name, parameter in module.named_parameters():
        row = torch.tensordot(weights, expected[name], dims=1)
        torch.testing.assert_close(combined[parameter], row, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("K", "B", "width", "multiplied_out"),
    [(10, 128, 400, True), (50, 128, 400, True), (10, 4, 400, False), (50, 16, 400, False)],
)
def test_small_batches_are_not_multiplied_out(K, B, width, multiplied_out):
    blocks = TaskBlocks(torch.zeros(1, K, B, width), torch.zeros(1, K, B, width))
    assert blocks.multiplies_out() is multiplied_out


def test_what_stays_in_the_caches_is_multiplied_out_sooner():
    blocks = TaskBlocks(torch.zeros(1, 10, 16, 400), torch.zeros(1, 10, 16, 400))
    assert blocks.multiplies_out() is dispatch.has_operators(blocks.errors)


@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 6, 7, 10, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_of_long_rows(K, dtype, generator):
    inputs, errors = (_normal(generator, 2, K, 9, 50).to(dtype) for _ in range(2))
    blocks = TaskBlocks(inputs, errors)
    blocks.multiplies_out = lambda: True
    rows = (inputs.double().mT @ errors.double()).flatten(2)  # 2,500 numbers each
    expected = (rows @ rows.mT).sum(dim=0).to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(blocks.gramian(), expected, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 6, 7, 10, 11])
@pytest.mark.parametrize("in_hardware", sorted({False, has_bf16(torch.device("cpu"))}))
def test_inner_products_and_weighted_sums_in_bf16(K, in_hardware, generator, monkeypatch):
    """Of J rounded to bf16, and nothing else."""
    for module in ("products", "jacobian"):
        monkeypatch.setattr(f"mtrl.{module}.has_bf16", lambda _: in_hardware)
    inputs = _normal(generator, 2, K, 9, 43).bfloat16()
    errors, weights = _normal(generator, 2, K, 9, 50).bfloat16(), _normal(generator, K).float()
    blocks = TaskBlocks(inputs, errors)
    blocks.multiplies_out = lambda: True
    rows = (inputs.double().mT @ errors.double()).bfloat16().double().flatten(2)  # 2,150 numbers
    gramian, combined = blocks.gramian(), blocks.combine(weights)
    assert gramian.dtype == combined.dtype == torch.float32
    expected = (rows @ rows.mT).sum(dim=0)
    # Sums of either order may end on two sides of a tie.
    torch.testing.assert_close(gramian.double(), expected, rtol=1e-3, atol=2)
    expected = torch.einsum("k,ekp->ep", weights.double(), rows)
    torch.testing.assert_close(combined.flatten(1).double(), expected, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize("way", ["no gramian", "factors"])
def test_a_weighted_sum_in_bf16_without_rows_rounds_the_weighted_errors(way, generator):
    inputs, errors = (_normal(generator, 2, 3, 9, 50).bfloat16() for _ in range(2))
    weights = torch.tensor([0.3, -2.0, 1.7])
    blocks = TaskBlocks(inputs, errors)
    if way == "factors":
        blocks.multiplies_out = lambda: False
        blocks.gramian()
    scaled = (errors.float() * weights[:, None, None]).bfloat16()
    expected = inputs.double().flatten(1, 2).mT @ scaled.double().flatten(1, 2)
    combined = blocks.combine(weights)
    assert combined.dtype == torch.float32
    torch.testing.assert_close(combined.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_column_of_errors_is_not_rounded(dtype, generator):
    inputs, errors = _normal(generator, 2, 3, 9, 50).to(dtype), _normal(generator, 2, 3, 9, 1)
    blocks = TaskBlocks(inputs, errors.float())
    weights = _normal(generator, 3).float()
    expected = inputs.double().mT @ errors
    torch.testing.assert_close(blocks.rows().double(), expected, rtol=1e-5, atol=1e-5)
    for has_gramian in (False, True):
        blocks = TaskBlocks(inputs, errors.float())
        if has_gramian:
            rows = expected.flatten(2)
            torch.testing.assert_close(
                blocks.gramian().double(), (rows @ rows.mT).sum(dim=0), rtol=1e-4, atol=1e-3
            )
        combined = torch.einsum("k,ekid->eid", weights.double(), expected)
        torch.testing.assert_close(blocks.combine(weights).double(), combined, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("K", "B", "keeps"),
    [(50, 16, False), (50, 17, True), (70, 17, False), (70, 65, True), (10, 16, True)],
)
def test_a_large_jacobian_is_not_kept(K, B, keeps):
    inputs = torch.zeros(2, K, B, 256)
    blocks = TaskBlocks(inputs, inputs)
    blocks.gramian_of_rows()
    assert (blocks.kept is not None) is (keeps or not dispatch.has_operators(inputs))


# An odd number of rows, and more than a kernel takes; whole tiles and not, a row in one piece and
# in several, with something left over or not.
@pytest.mark.parametrize(("K", "B"), [(1, 2), (4, 5), (5, 1), (11, 12), (3, 64), (2, 65)])
@pytest.mark.parametrize(
    "size", [(1, 50), (40, 30), (90, 101), (64, 3), (43, 256), (3, 4099), (9, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("is_kept", [False, True])
def test_rows_and_their_inner_products(K, B, size, dtype, is_kept, generator, monkeypatch):
    I, D = size  # noqa: E741
    monkeypatch.setattr("mtrl.jacobian.LARGE", math.inf if is_kept else 0)
    monkeypatch.setattr("mtrl.jacobian.FORGOTTEN", 64)
    monkeypatch.setattr("mtrl.jacobian.FEW", 64 * torch.get_num_threads())
    full = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = _normal(generator, 2, K, B, I).to(dtype)
    blocks = TaskBlocks(inputs, _normal(generator, 2, K, B, D).to(full))
    gramian = blocks.gramian_of_rows()
    assert gramian.dtype == full
    in_tiles = dtype != torch.bfloat16 or takes_bf16()
    if not is_kept and D > 1 and B <= 64 and in_tiles and dispatch.has_operators(inputs):
        assert blocks.kept is None
    rows = blocks.inputs.double().mT @ blocks.errors.double()
    exact = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2**-8}[dtype]
    if D == 1:
        exact = min(exact, 1e-5)
    torch.testing.assert_close(blocks.rows().double(), rows, rtol=exact, atol=exact * B / 8)
    kept = blocks.rows().double().flatten(2)
    exact = 1e-13 if dtype == torch.float64 else 1e-5
    expected = (kept @ kept.mT).sum(dim=0)
    room = exact * expected.diagonal().max().item()
    torch.testing.assert_close(gramian.double(), expected, rtol=exact, atol=room)


@pytest.mark.parametrize("B", [1, 3, 4, 6, 64, 65])  # the kernel, but for the last
@pytest.mark.parametrize(("I", "D"), [(5, 1), (40, 7), (30, 50), (1, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_of_few_rows_with_zeros(B, I, D, dtype, generator, monkeypatch):  # noqa: E741
    monkeypatch.setattr("mtrl.jacobian.FEW", 64 * torch.get_num_threads())
    inputs, errors = _normal(generator, 2, 3, B, I), _normal(generator, 2, 3, B, D).float()
    inputs = torch.where(inputs > 0.3, inputs, 0.0).to(dtype)
    inputs[0, 1] = 0
    errors = errors.double() if dtype == torch.float64 else errors
    blocks = TaskBlocks(inputs, errors)
    blocks.gramian_of_rows()
    assert blocks.kept is not None
    J = blocks.rows()
    assert J.dtype == errors.dtype
    rounding = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype]
    expected = inputs.double().mT @ errors.double()
    torch.testing.assert_close(J.double(), expected, rtol=rounding, atol=rounding * B)
    assert not J[0, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_the_gradients_of_its_task(
    dtype, is_kept, value, generator, monkeypatch
):
    monkeypatch.setattr("mtrl.jacobian.LARGE", math.inf if is_kept else 0)
    inputs, errors = (_normal(generator, 1, 3, 5, 20).to(dtype) for _ in range(2))
    inputs[0, 1, 4, 5] = value  # the last of an odd number of rows
    blocks = TaskBlocks(inputs, errors)
    finite = blocks.gramian_of_rows().isfinite()
    assert not blocks.rows()[0, 1, 5].isfinite().any()
    assert blocks.rows().isfinite().sum() == 3 * 20 * 20 - 20
    assert finite[[0, 0, 2, 2], [0, 2, 0, 2]].all()
    assert not finite[1].any()


def test_an_infinite_gradient_of_a_bias_stays_infinite():
    """Infinity less infinity would be NaN."""
    sums = torch.ones(1, 2, 3)
    sums[0, 1] = math.inf
    if dispatch.has_operators(sums):
        _, gramian = rows_and_gramian([], [], [sums], [True])
        assert torch.equal(gramian, torch.tensor([[6.0, math.inf], [math.inf, math.inf]]))
    inputs = torch.tensor([math.inf, 1.0, 1.0]).view(1, 3, 1, 1)
    assert rows_of(inputs, torch.ones(1, 3, 1, 1)).flatten().tolist() == [math.inf, 1.0, 1.0]


def rows_of(inputs: Tensor, errors: Tensor) -> Tensor:
    blocks = TaskBlocks(inputs, errors)
    blocks.gramian_of_rows()
    return blocks.rows()


@pytest.mark.parametrize("K", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weighted_sums_of_several_layers(K, dtype, generator):
    if not dispatch.has_operators(torch.zeros(1)):
        return  # other devices add up each layer's
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = _normal(generator, K).to(wide)
    heights, widths, own = [30, 5, 1, 0], [50, 1, 3000, 7], [True, False, False, True]
    inputs = [_normal(generator, 2, K, 4, height).to(dtype) for height in heights]
    errors = [_normal(generator, 2, K, 4, D).to(wide if D == 1 else dtype) for D in widths]
    sums = [_normal(generator, 2, K, D).to(wide) for D in widths]
    rows, _ = rows_and_gramian(inputs, errors, sums, own)
    results = weighted_sums(weights, rows, sums, heights, own)
    near = 1e-4 if wide == torch.float32 else 1e-12
    for number, size in enumerate(zip(heights, widths, strict=True)):
        J = rows[number][..., : math.prod(size)].to(wide).unflatten(-1, size)
        of_weight = torch.einsum("k,ekid->eid", weights, J)
        weighted = weights[:, None] * sums[number]
        if own[number]:
            of_weight = torch.cat([of_weight, weighted], dim=1)
        torch.testing.assert_close(results[2 * number], of_weight, rtol=near, atol=near)
        of_bias = weighted.sum(dim=1, keepdim=True)
        torch.testing.assert_close(results[2 * number + 1], of_bias, rtol=near, atol=near)


def test_a_compiler_is_told_the_right_shapes(generator):
    inputs, errors = (
        _normal(generator, 2, 3, 4, 50).float(),
        _normal(generator, 2, 3, 4, 30).float(),
    )
    sums, weights = errors.sum(dim=2), torch.ones(3)
    check = functools.partial(torch.library.opcheck, test_utils="test_faketensor")
    for large in (0, math.inf):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mtrl.jacobian.LARGE", large)
            check(torch.ops.mtrl.rows_and_gramian, ([inputs], [errors], [sums], [True]))
    rows, _ = rows_and_gramian([inputs], [errors], [], [])
    check(torch.ops.mtrl.weighted_sums, (weights, rows, [sums], [50], [True]))
    check(torch.ops.mtrl.sum_up, (errors,))


def test_weights_can_be_combined_without_a_gramian(example, generator):
    module, inputs, J = example
    weights = _normal(generator, 4)
    expected = _one_pass_per_task(module, inputs)
    combined = combine(weights, J)
    for name, parameter in module.named_parameters():
        row = torch.tensordot(weights, expected[name], dims=1)
        torch.testing.assert_close(combined[parameter], row, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["+sse2", "+avx,+avx2,+fma", "+avx,+avx2,+fma,+avx512f"])
def test_processors_with_smaller_registers_find_the_same(features):
    program = """
import torch
from mtrl import tiles
from mtrl.jacobian import rows_and_gramian, weighted_sums
assert tiles.VECTOR == {vector} and not tiles.takes_bf16()
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for K, B, I, D in ((1, 2, 3, 4), (4, 5, 40, 30), (11, 3, 100, 101), (7, 1, 8, 32)):
        inputs, errors = (
            torch.randn(2, K, B, size, generator=generator).to(dtype) for size in (I, D)
        )
        (kept,), gramian = rows_and_gramian([inputs], [errors], [], [])
        rows = (inputs.mT @ errors).flatten(2)
        near = {{"rtol": 1e-4, "atol": 1e-3}}
        torch.testing.assert_close(kept[..., : I * D], rows, **near)
        torch.testing.assert_close(gramian, (rows @ rows.mT).sum(dim=0), **near)
"""
    vector = 64 if "avx512f" in features else 32 if "avx" in features else 16
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    program = program.format(vector=vector)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_bfloat16_products_stay_close_and_results_keep_their_type(generator):
    module = TwoLayers(2, (16, 32, 4), generator).float()
    inputs = _normal(generator, 2, 3, 64, 16).float()

    def differentiate(dtype: torch.dtype) -> dict[str, Tensor]:
        tape = Tape()
        outputs = module(inputs, tape, dtype)
        assert outputs.dtype == torch.float32
        by_parameter = rows(jacobian(outputs.square().mean(dim=(0, 2, 3)), tape))
        return {name: by_parameter[value] for name, value in module.named_parameters()}

    exact, rounded = differentiate(torch.float32), differentiate(torch.bfloat16)
    for name in exact:
        assert rounded[name].dtype == torch.float32
        error = (rounded[name] - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.02, name
