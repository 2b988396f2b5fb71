"""What a compiled function has done once is done again, on memory that it shares with nothing."""

from __future__ import annotations

import importlib.util
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import agents  # noqa: F401 - and with it all operations of ours
from mtrl import dispatch
from mtrl.amx import instructions
from mtrl.compiled import Compiled
from mtrl.recording import ALIGNMENT, Recording, arrange
from mtrl.seeding import make_generator
from mtrl.stored import Stored, record_type

# Every step of torch's compiler is told to this logger, and pytest keeps it all.
logging.getLogger("torch.__trace").setLevel(logging.WARNING)


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 9), st.integers(0, 9)), max_size=25))
def test_what_is_needed_at_the_same_time_lies_apart(needs):
    needs.sort(key=lambda need: need[1])
    lasting = {n: (size, first, first + more) for n, (size, first, more) in enumerate(needs)}
    places, total = arrange(lasting)
    ends = {n: places[n] + size for n, (size, *_) in lasting.items()}
    assert total == max((-(-end // ALIGNMENT) * ALIGNMENT for end in ends.values()), default=0)
    for a, (_, first, last) in lasting.items():
        assert places[a] % ALIGNMENT == 0
        for b, (_, other_first, other_last) in lasting.items():
            if a < b and first <= other_last and other_first <= last:
                assert ends[a] <= places[b] or ends[b] <= places[a]


def test_what_is_needed_one_after_the_other_shares_a_place():
    places, total = arrange({n: (64, n, n + 1) for n in range(4)})
    assert total == 128
    assert places[0] == places[2] == 0


class Update:
    """Draws, sorts, multiplies, calls operations of ours, and changes what it began with."""

    def __init__(self):
        self.generator = make_generator(0, "recording")
        self.weight = torch.eye(4) / 2
        self.total = torch.zeros(4)
        self.chances = torch.ones(9)

    def __call__(self):
        drawn = torch.randn(4, 4, generator=self.generator)
        chosen = torch.multinomial(self.chances, 4, generator=self.generator)
        product = (drawn + chosen) @ self.weight
        order = product.argsort(dim=1)
        self.total += product.sum(dim=0)
        self.weight += product.gather(1, order) / 100
        norms = torch.nn.utils.get_total_norm([self.weight, product])
        return {"norms": norms, "order": order, "product": product, "kept": self.total}


def _cannot_repeat(compiled):
    compiled._function.is_complete = compiled._function._is_new = False
    return compiled


def test_it_is_the_function_to_the_bit():
    recorded, called, plain = Update(), Update(), Update()
    repeats, calls = Compiled(recorded), _cannot_repeat(Compiled(called))
    for _ in range(5):
        metrics, expected = repeats(), calls()
        torch.testing.assert_close(metrics, expected, rtol=0, atol=0)
        torch.testing.assert_close(metrics, plain())
        torch.testing.assert_close(recorded.weight, called.weight, rtol=0, atol=0)
    assert repeats._function.is_complete
    assert not calls._function.is_complete
    assert metrics["norms"].data_ptr() == repeats()["norms"].data_ptr()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["other names", "other modules"])
def test_a_later_torch_may_name_things_otherwise_or_keep_them_elsewhere(elsewhere, monkeypatch):
    """Its loops are known by what they are not; where nothing is seen, nothing is repeated."""
    recorded, plain = Counting(), Counting()
    compiled = Compiled(recorded)
    recording = compiled._function
    if elsewhere:
        recording._modules = []
    else:
        for module in recording._modules:
            source, names = module.Runner.call, vars(module)
            loops = [name for name in names if name.startswith("cpp_")]
            assert loops
            code = source.__code__
            new = tuple(name.replace("cpp_", "loop_") for name in code.co_names)
            source.__code__ = code.replace(co_names=new)
            for name in loops:
                names[name.replace("cpp_", "loop_")] = names.pop(name)
    for _ in range(3):
        assert compiled()["total"].tolist() == plain()["total"].tolist()
    assert recorded.total.tolist() == [3.0] * 4
    assert recording.is_complete is not elsewhere


class Counting:
    """Changes its state, and returns it as it is: nothing is allocated."""

    def __init__(self):
        self.total = torch.zeros(4)

    def __call__(self):
        self.total += 1
        return {"total": self.total}


@pytest.mark.parametrize("unseen", ["a call", "memory"])
def test_what_is_seen_in_part_is_called(unseen):
    counting = Counting()
    compiled = Compiled(counting)
    compiled()
    recording, more = compiled._function, torch.zeros(4)

    def function(*inputs):
        if unseen == "a call":
            more.add_(1)
            return recording._function(*inputs)
        other = torch.from_numpy(counting.total.numpy() + 1)
        return (*recording._function(*inputs), other)

    again = Recording(function, recording._modules)
    for number in range(2, 5):
        results = again(*compiled._inputs)
        assert counting.total.tolist() == [number] * 4
    assert not again.is_complete
    assert more[0] == (3 if unseen == "a call" else 0)
    assert results[-1].tolist() == [number] * 4


def test_what_is_not_seen_is_called(caplog):
    caplog.set_level("INFO", logger="mtrl")
    total = torch.zeros(3)

    def changes(step):
        total.add_(step)
        return (total,)

    def finds(step):
        return (torch.sin(step),)

    recording = Recording(changes, [])
    for number in range(1, 4):
        assert recording(torch.ones(3))[0].tolist() == [number] * 3
    assert not recording.is_complete
    assert "cannot be repeated" in caplog.text
    recording, given = Recording(finds, []), torch.zeros(3)
    for number in range(3):
        given.fill_(number)
        torch.testing.assert_close(recording(given)[0], given.sin())
    assert not recording.is_complete


def _rows_of_task_gradients(K=3, B=4):
    inputs = [torch.randn(2, K, B, 5), torch.randn(2, K, B, 7)]
    errors = [torch.randn(2, K, B, 7), torch.randn(2, K, B, 1)]
    sums = [torch.randn(2, K, 7), torch.randn(2, K, 1)]
    return inputs, errors, sums, [True, False]


def _weighted(K=3):
    given = _rows_of_task_gradients(K)
    rows, _ = dispatch.operators["rows_and_gramian"](*given)
    return torch.rand(K), rows, given[2], [5, 7], given[3]


def _with_zeros():
    count = torch.tensor([[[0.0]], [[1.0]]]) if torch.rand(()) < 0.3 else torch.rand(2, 1, 1)
    return torch.randn(2, 20, 5) * (torch.rand(2, 20, 1) < count), torch.randn(2, 5, 3), FLOAT


def _moments():
    state = [[torch.rand(3, 2), torch.rand(4)] for _ in range(4)]
    steps = [torch.randint(1, 9, ()).float() for _ in range(2)]
    return *state, steps, 0.0, torch.rand((), dtype=torch.float64), 0.9, 0.999, 1e-5, None


def _gradnorm():
    return torch.rand(3, 3), torch.rand(3), [*(torch.rand(3) for _ in range(4)), torch.ones(())]


def _replay(C=6, K=3):
    stored = Stored.allocate(C, K, 5, 2, "cpu")
    records = np.zeros((C, K), record_type(2))
    records["last"], records["span"] = torch.randint(C, (2, C, K)).numpy()
    records["actions"], records["total"] = torch.rand(C, K, 2).numpy(), torch.rand(C, K).numpy()
    stored.store(records)
    stored.observations.normal_()
    window = torch.stack([torch.randint(C, (K, 1)), torch.randint(1, C + 1, (K, 1))])
    slots = torch.randint(C, (C, K), dtype=torch.int32)
    return stored.observations, stored.records, slots, torch.randint(9, (K, 4)), window


FLOAT = torch.float32
LAYERS = [torch.randn(2, 8, 6), torch.randn(2, 6, 1)], [True, False], [True, False], "all"


def _layers(inputs):
    weights, *options = LAYERS
    biases = [torch.randn(2, 1, weight.shape[-1]) for weight in weights]
    return inputs, weights, biases, *options, torch.float32


def _way_back(gradient):
    weights, *options = LAYERS
    found = dispatch.operators["apply"](*_layers(torch.randn(2, 3, 4, 5)))
    return gradient, found, weights, *options, 5, torch.float32


def _in_bf16(inputs, errors, sums, own):
    narrow = [each.bfloat16() if each.shape[-1] > 1 else each for each in errors]
    return inputs, narrow, sums, own


OPERATIONS = {
    "rows_and_gramian": _rows_of_task_gradients,
    "weighted_sums": _weighted,
    "multiply_rows_that_count": _with_zeros,
    "multiply_thin": lambda: (torch.randn(2, 6, 5).bfloat16(), torch.randn(2, 5, 1), FLOAT),
    "sum_up": lambda: (torch.randn(2, 3, 4, 5),),
    "summary": lambda: (torch.randn(3, 3),),
    "project_one_by_one": lambda: (torch.randn(3, 3), torch.randperm(3).repeat(3, 1)[:, :2]),
    "learn_in_one_call": lambda: (*_gradnorm(), 0.5, 0.1),
    "order_others": lambda: (torch.rand(5, 5),),
    "total_norm": lambda: ([torch.randn(2, 3), torch.randn(4)],),
    "adam": _moments,
    "read_rows": _replay,
}
IN_TILES = {
    "apply": lambda: _layers(torch.randn(2, 3, 4, 5)),
    "go_back": lambda: _way_back(torch.randn(2, 3, 4, 1)),
    "gramian": lambda: _in_bf16(*_rows_of_task_gradients()),
    "weighted_gradients": lambda: (torch.rand(3), *_in_bf16(*_rows_of_task_gradients())[:2]),
}


IN_TRITON = {}
if importlib.util.find_spec("triton") is not None:
    importlib.import_module("mtrl.triton_kernels")  # whose kernels become operations
    IN_TRITON = {
        "project": OPERATIONS["project_one_by_one"],
        "learn": OPERATIONS["learn_in_one_call"],
        "summarise": OPERATIONS["summary"],
    }


needs_tiles = pytest.mark.skipif(not instructions.available(), reason="the processor has no tiles")


needs_no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton's kernels work on a GPU's numbers where there is one"
)


def test_all_operations_are_tested():
    assert dispatch.operators.keys() == OPERATIONS.keys() | IN_TILES.keys() | IN_TRITON.keys()


def _is_several(value):
    return isinstance(value, (list, tuple))


def _all_tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for each in value for tensor in _all_tensors(each)] if _is_several(value) else []


def _mapped(value, change):
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)(_mapped(v, change) for v in value) if _is_several(value) else value


def _in_pieces(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else tensor


def _results(name, args, results):
    """What an operation has found; not what lies between the rows of J."""
    if name != "rows_and_gramian":
        return _all_tensors(results)
    inputs, errors, *_ = args
    lengths = [a.shape[-1] * d.shape[-1] for a, d in zip(inputs, errors, strict=True)]
    rows, gramian = results
    return [gramian, *(each[..., :length] for each, length in zip(rows, lengths, strict=True))]


@pytest.mark.parametrize("layout", [torch.Tensor.clone, _in_pieces], ids=["whole", "in pieces"])
@pytest.mark.parametrize(
    "name",
    [
        *OPERATIONS,
        *(pytest.param(name, marks=needs_no_gpu) for name in IN_TRITON),
        *(pytest.param(name, marks=needs_tiles) for name in IN_TILES),
    ],
)
def test_a_prepared_operation_reads_what_is_there_when_it_is_called(name, layout):
    if layout is _in_pieces and name in ("weighted_sums", "read_rows"):
        pytest.skip("what it is given was allocated in one piece")
    torch.manual_seed(0)
    operator, draw = dispatch.operators[name], (OPERATIONS | IN_TRITON | IN_TILES)[name]
    args = _mapped(draw(), layout)
    if layout is _in_pieces and name == "adam":
        with pytest.raises(ValueError, match="in one piece"):
            operator.prepared(args, None)
        parameters, _, *more = draw()
        args = parameters, args[1], *more
    results = None if operator.room is None else operator.room(*args)
    call = operator.prepared(args, results)
    for _ in range(8):
        for tensor, drawn in zip(_all_tensors(args), _all_tensors(draw()), strict=True):
            tensor.copy_(drawn)
        expected_args = _mapped(args, torch.clone)
        expected = operator.straight(*expected_args)
        call()
        found = _results(name, args, results), _results(name, args, expected)
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
        args_after = _all_tensors(args), _all_tensors(expected_args)
        torch.testing.assert_close(*args_after, rtol=0, atol=0)
