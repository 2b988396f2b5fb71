import subprocess
import sys

import pytest
from metaworld import env_dict

from envs import make_vec, space_sizes, task_names
from envs.benchmarks import MT10, MT25, MT50
from mtrl.errors import UserError


def test_task_lists_are_the_official_ones_in_their_order():
    assert tuple(env_dict.MT10_V3) == MT10
    assert tuple(env_dict.MT25_V3) == MT25
    assert tuple(env_dict.MT50_V3) == MT50


@pytest.mark.parametrize(
    ("benchmark", "expected"),
    [
        ("MT10", MT10),
        (["MT25"], MT25),
        ("push-v3", ("push-v3",)),
        (("sweep-v3", "reach-v3"), ("sweep-v3", "reach-v3")),
        ("toy-left", ("toy-left",)),
        ("toy", ("toy-reach", "toy-left", "toy-mirror", "toy-right")),
    ],
)
def test_names_resolve(benchmark, expected):
    assert task_names(benchmark) == expected


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ("MT11", "`benchmark` 'MT11' is not known: did you mean 'MT10'"),
        ("mt50", "did you mean 'MT50'"),
        ("reach", "did you mean 'reach-v3'"),
        (["push-v3", "dor-open-v3"], "'dor-open-v3' is not known: did you mean 'door-open-v3'"),
        ("xyz", "'xyz' is not known: choose MT10, MT25, MT50, toy, or tasks such as"),
        ((), "`benchmark` is empty"),
        ("", "`benchmark` '' is not known"),
        (["push-v3", "reach-v3", "push-v3"], "names 'push-v3' more than once"),
        (["MT10", "sweep-v3"], "lists 'MT10' beside others"),
        (["toy-left", "sweep-v3"], "mixes toy and Meta-World tasks"),
    ],
)
def test_a_wrong_benchmark_is_named_with_its_remedy(benchmark, message):
    with pytest.raises(UserError) as caught:
        task_names(benchmark)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("3, seed=0", "`benchmark` is 3: give a name, or several"),
        ("['toy-left', None], seed=0", "`benchmark` is ['toy-left', None]"),
        ("'toy', seed=0, envs_per_task=2.5", "`envs_per_task` is 2.5: choose a whole number"),
    ],
)
def test_what_is_of_another_type_is_named_too(arguments, message):
    """In a process of its own, as in tests all types are checked."""
    script = f"import envs; envs.make_vec({arguments})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"UserError: {message}" in result.stderr


def test_neither_names_nor_toy_tasks_load_a_simulator():
    script = (
        "import sys, envs; envs.task_names('MT50'); envs.make_vec('toy', seed=0).reset(); "
        "print(sorted({'mujoco', 'metaworld'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("benchmark", ["toy", "reach-v3"])
def test_sizes_are_those_of_the_environments(benchmark):
    envs = make_vec(benchmark, seed=0, one_hot=False)
    shapes = envs.single_observation_space.shape + envs.single_action_space.shape
    envs.close()
    assert space_sizes(benchmark) == shapes
