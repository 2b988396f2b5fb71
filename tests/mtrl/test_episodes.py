import numpy as np
import pytest
import torch

from mtrl.episodes import EpisodeTracker


def test_episode_metrics_are_means_over_the_episodes_that_ended():
    tracker = EpisodeTracker(("a", "b"), envs_per_task=2)
    never = torch.zeros(4, dtype=torch.bool).numpy()
    first_two = torch.tensor([True, True, False, False]).numpy()
    second = torch.tensor([False, True, False, False]).numpy()
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0]).numpy()
    tracker.add(rewards, second, never)
    assert tracker.pop_metrics() == {}
    tracker.add(rewards, never, first_two)
    assert tracker.pop_metrics() == {"train/return/a": 3.0, "train/success_rate/a": 0.5}
    assert tracker.pop_metrics() == {}, "each episode counts once"
    tracker.add(rewards, never, ~never)
    assert tracker.pop_metrics() == {
        "train/return/a": 1.5,
        "train/success_rate/a": 0.0,
        "train/return/b": 10.5,
        "train/success_rate/b": 0.0,
    }


def test_a_broken_episode_is_dropped_and_counted():
    tracker = EpisodeTracker(("a", "b"), envs_per_task=2)
    none, broken = np.zeros(4, bool), np.array([False, True, False, False])
    tracker.add(np.array([1.0, 100.0, 0.0, 0.0]), broken, none)
    tracker.add(np.zeros(4), none, broken, broken=broken)
    assert tracker.pop_metrics() == {"train/dropped_episodes/a": 1}
    tracker.add(np.ones(4), none, np.array([True, True, False, False]))
    assert tracker.pop_metrics() == {
        "train/return/a": 1.5,  # 1 + 1, and 1 in a new episode
        "train/success_rate/a": 0.0,
        "train/dropped_episodes/a": 1,
    }


def test_an_episode_that_goes_on_after_a_broken_step_is_dropped_once_as_a_whole():
    tracker = EpisodeTracker(("a",), envs_per_task=1)
    no, yes, reward = np.array([False]), np.array([True]), np.array([1.0])
    tracker.add(reward, yes, no)
    for _ in range(2):
        tracker.add(reward, no, no, broken=yes)
    assert tracker.pop_metrics() == {"train/dropped_episodes/a": 1}
    resumed = EpisodeTracker(("a",), envs_per_task=1)
    resumed.load_state_dict(tracker.state_dict())
    resumed.add(reward, no, yes)
    assert resumed.pop_metrics() == {"train/dropped_episodes/a": 1}
    resumed.add(reward, no, yes)
    assert resumed.pop_metrics() == {
        "train/return/a": 1.0,
        "train/success_rate/a": 0.0,
        "train/dropped_episodes/a": 1,
    }


def test_state_goes_on_with_episodes_under_way_and_not_yet_reported():
    one, other = (EpisodeTracker(("a", "b"), envs_per_task=1) for _ in range(2))
    one.add(np.array([1.0, 2.0]), np.array([True, False]), np.array([False, True]))
    other.load_state_dict(one.state_dict())
    for tracker in (one, other):
        tracker.add(np.array([4.0, 8.0]), np.zeros(2, bool), np.ones(2, bool))
    expected = one.pop_metrics()
    assert other.pop_metrics() == expected
    assert expected["train/return/a"] == 5.0
    assert expected["train/return/b"] == 5.0
    with pytest.raises(ValueError, match="returns"):
        other.load_state_dict(EpisodeTracker(("a",), 3).state_dict())
