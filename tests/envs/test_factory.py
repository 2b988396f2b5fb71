import doctest

import pytest

from envs import benchmarks, factory, make_vec
from mtrl.errors import UserError


@pytest.mark.parametrize(
    ("argument", "value", "remedy"),
    [
        ("benchmark", "MT11", "MT10"),
        ("engine", "quick", "fast or official"),
        ("num_threads", 0, "1 or more"),
        ("reward_version", "v3", "v1 or v2"),
        ("goals", "fixed", "random or sequential or once or official"),
        ("envs_per_task", 0, "1 or more"),
        ("max_episode_steps", 0, "1 or more"),
        ("max_episode_steps", 501, "500"),
        ("seed", -1, "0 or more"),
        ("goal_seed", -1, "0 or more"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_a_remedy(argument, value, remedy):
    arguments = {"benchmark": "MT10", "seed": 0, argument: value}
    with pytest.raises(UserError) as caught:
        make_vec(**arguments)
    message = str(caught.value)
    assert f"`{argument}`" in message
    assert str(value) in message
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize("module", [benchmarks, factory])
def test_examples(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
