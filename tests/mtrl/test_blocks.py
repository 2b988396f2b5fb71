"""Products of tall matrices, task by task, against float64, on a CPU's way and the others'."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtrl import dispatch
from mtrl.blocks import TaskBlocks
from mtrl.device import has_bf16
from mtrl.gradients import Jacobian, LayerJacobian, combine, gramian
from mtrl.tiles import takes_bf16

pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _jacobian(blocks: TaskBlocks, *, multiplied_out: bool = True) -> Jacobian:
    """Return that of one layer, whose biases count for nothing."""
    (E, K, _, D), I = blocks.errors.shape, blocks.inputs.shape[-1]  # noqa: E741
    sums = torch.zeros(E, K, D, dtype=blocks.rows().dtype)
    blocks.multiplies_out = lambda: multiplied_out
    return Jacobian([LayerJacobian(torch.empty(E, I, D), sums[:, :1], blocks, sums, False)])


@pytest.mark.parametrize(
    ("K", "B", "width", "multiplied_out"),
    [(10, 128, 400, True), (50, 128, 400, True), (10, 4, 400, False), (50, 16, 400, False)],
)
def test_small_batches_are_not_multiplied_out(K, B, width, multiplied_out):
    """But where operations are what costs, as long as J is not large."""
    blocks = TaskBlocks(torch.zeros(1, K, B, width), torch.zeros(1, K, B, width))
    has_kernels = dispatch.has_operators(blocks.errors)
    assert blocks.multiplies_out() is (multiplied_out or not has_kernels)
    large = torch.zeros(1, K, B, 1).expand(1, K, B, 10 * width)
    assert TaskBlocks(large, large).multiplies_out() is (B == 128)


def test_what_stays_in_the_caches_is_multiplied_out_sooner():
    blocks = TaskBlocks(torch.zeros(1, 10, 16, 400), torch.zeros(1, 10, 16, 400))
    assert blocks.multiplies_out()


@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 6, 7, 10, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_of_long_rows(K, dtype, generator):
    inputs, errors = (_normal(generator, 2, K, 9, 50).to(dtype) for _ in range(2))
    blocks = TaskBlocks(inputs, errors)
    rows = (inputs.double().mT @ errors.double()).flatten(2)  # 2,500 numbers each
    expected = (rows @ rows.mT).sum(dim=0).to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    found = gramian(_jacobian(blocks))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 6, 7, 10, 11])
@pytest.mark.parametrize("in_hardware", sorted({False, has_bf16(torch.device("cpu"))}))
def test_inner_products_and_weighted_sums_in_bf16(K, in_hardware, generator, monkeypatch):
    """Of J rounded to bf16, and nothing else; in tiles, of errors times weights."""
    if not in_hardware:
        monkeypatch.setattr("mtrl.amx.instructions.available", lambda: False)
    for module in ("products", "task_rows"):
        monkeypatch.setattr(f"mtrl.{module}.has_bf16", lambda _: in_hardware)
    inputs = _normal(generator, 2, K, 9, 43).bfloat16()
    errors, weights = _normal(generator, 2, K, 9, 50).bfloat16(), _normal(generator, K).float()
    J = _jacobian(TaskBlocks(inputs, errors))
    rows = (inputs.double().mT @ errors.double()).flatten(2)  # 2,150 numbers
    if not J[0].blocks.in_tiles:
        rows = rows.bfloat16().double()
    G, combined = gramian(J), combine(weights, J)[J[0].weight]
    assert G.dtype == combined.dtype == torch.float32
    expected = (rows @ rows.mT).sum(dim=0)
    # Sums of either order may end on two sides of a tie.
    torch.testing.assert_close(G.double(), expected, rtol=1e-3, atol=2)
    expected = torch.einsum("k,ekp->ep", weights.double(), rows)
    torch.testing.assert_close(combined.flatten(1).double(), expected, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize("way", ["no gramian", "factors"])
def test_a_weighted_sum_in_bf16_without_rows_rounds_the_weighted_errors(way, generator):
    inputs, errors = (_normal(generator, 2, 3, 9, 50).bfloat16() for _ in range(2))
    weights = torch.tensor([0.3, -2.0, 1.7])
    J = _jacobian(TaskBlocks(inputs, errors), multiplied_out=False)
    if way == "factors":
        gramian(J)
    scaled = (errors.float() * weights[:, None, None]).bfloat16()
    expected = inputs.double().flatten(1, 2).mT @ scaled.double().flatten(1, 2)
    combined = combine(weights, J)[J[0].weight]
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
        J = _jacobian(TaskBlocks(inputs, errors.float()))
        if has_gramian:
            rows = expected.flatten(2)
            G = (rows @ rows.mT).sum(dim=0)
            torch.testing.assert_close(gramian(J).double(), G, rtol=1e-4, atol=1e-3)
        found = combine(weights, J)[J[0].weight].double()
        combined = torch.einsum("k,ekid->eid", weights.double(), expected)
        torch.testing.assert_close(found, combined, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("K", "B", "keeps"),
    [(50, 16, False), (50, 17, True), (70, 17, False), (70, 65, True), (10, 16, True)],
)
def test_a_large_jacobian_is_not_kept(K, B, keeps):
    inputs = torch.zeros(2, K, B, 256)
    blocks = TaskBlocks(inputs, inputs)
    J = _jacobian(blocks)
    gramian(J)
    assert (blocks.kept is not None or J.together is not None) is (
        keeps or not dispatch.has_operators(inputs)
    )


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
    monkeypatch.setattr("mtrl.task_rows.LARGE", math.inf if is_kept else 0)
    monkeypatch.setattr("mtrl.task_rows.FORGOTTEN", 64)
    monkeypatch.setattr("mtrl.task_rows.FEW", 64 * torch.get_num_threads())
    full = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = _normal(generator, 2, K, B, I).to(dtype)
    blocks = TaskBlocks(inputs, _normal(generator, 2, K, B, D).to(full))
    G = gramian(_jacobian(blocks))
    assert G.dtype == full
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
    torch.testing.assert_close(G.double(), expected, rtol=exact, atol=room)


@pytest.mark.parametrize("B", [1, 3, 4, 6, 64, 65])  # the kernel, but for the last
@pytest.mark.parametrize(("I", "D"), [(5, 1), (40, 7), (30, 50), (1, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_of_few_rows_with_zeros(B, I, D, dtype, generator, monkeypatch):  # noqa: E741
    monkeypatch.setattr("mtrl.task_rows.FEW", 64 * torch.get_num_threads())
    inputs, errors = _normal(generator, 2, 3, B, I), _normal(generator, 2, 3, B, D).float()
    inputs = torch.where(inputs > 0.3, inputs, 0.0).to(dtype)
    inputs[0, 1] = 0
    errors = errors.double() if dtype == torch.float64 else errors
    blocks = TaskBlocks(inputs, errors)
    gramian(_jacobian(blocks))
    assert (blocks.kept is not None) is (dispatch.has_operators(inputs) and not blocks.in_tiles)
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
    monkeypatch.setattr("mtrl.task_rows.LARGE", math.inf if is_kept else 0)
    inputs, errors = (_normal(generator, 1, 3, 5, 20).to(dtype) for _ in range(2))
    inputs[0, 1, 4, 5] = value  # the last of an odd number of rows
    blocks = TaskBlocks(inputs, errors)
    finite = gramian(_jacobian(blocks)).isfinite()
    assert not blocks.rows()[0, 1, 5].isfinite().any()
    assert blocks.rows().isfinite().sum() == 3 * 20 * 20 - 20
    assert finite[[0, 0, 2, 2], [0, 2, 0, 2]].all()
    assert not finite[1].any()
