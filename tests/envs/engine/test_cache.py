import os
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from envs.engine.cache import read_arrays, write_arrays
from envs.engine.models import load_models, make_environments
from envs.engine.snapshot import LiveView, Snapshot, read_snapshot, write_snapshot
from envs.engine.template import Template, cached_goals
from mtrl.cache import UNUSED_DAYS, cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mtrl"


def flip_a_bit(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def test_arrays_come_back_and_damage_is_noticed(tmp_path, caplog):
    path = tmp_path / "arrays"
    arrays = {"a": np.arange(5.0), "b": np.float32([[1.5]]), "empty": np.zeros((0, 3))}
    write_arrays(path, arrays, {"x": [1, float("inf")]})
    read, description = read_arrays(path)
    assert description == {"x": [1, float("inf")]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert read_arrays(tmp_path / "missing") is None
    intact = path.read_bytes()
    for bit in range(8 * len(intact)):
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_arrays(path) is None, bit
    assert "is damaged" in caplog.text


def test_a_snapshot_keeps_the_kinds_of_its_numbers(tmp_path):
    attributes = {
        "live": LiveView(80, 3),
        "array": np.float32([1, 2]),
        "python": 0.1,
        "integer": 3,
        "none": None,
        "yes": True,
        "double": np.float64(0.1),
        "single": np.float32(0.1),
        "flag": np.bool_(False),
    }
    arrays = (np.full(n, np.pi * n) for n in range(1, 6))
    snapshot = Snapshot(*arrays, attributes)
    write_snapshot(tmp_path / "snapshot", snapshot)
    read = read_snapshot(tmp_path / "snapshot")
    np.testing.assert_array_equal(read.frame, snapshot.frame)
    np.testing.assert_array_equal(read.attributes.pop("array"), attributes.pop("array"))
    assert list(read.attributes.items()) == list(attributes.items())
    assert [type(value) for value in read.attributes.values()] == list(
        map(type, attributes.values())
    )


def test_what_is_kept_is_what_would_be_computed(cache, caplog):
    names = ("push-v3", "bin-picking-v3")

    def compute():
        envs = make_environments(names, "v2", 2)
        goals = cached_goals(envs, names, 42, one_stream=False)
        return [Template(*pair).snapshot(7) for pair in zip(envs, goals, strict=True)], goals

    first, first_goals = compute()
    kept = sorted(path for path in cache.rglob("*") if path.is_file())
    assert len(kept) == 2 + 1 + 2  # models, goals, resets
    again, again_goals = compute()
    for path in kept:
        flip_a_bit(path, 0.6)
    afresh, afresh_goals = compute()
    assert "is damaged" in caplog.text
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == kept

    for others, goals in ((again, again_goals), (afresh, afresh_goals)):
        np.testing.assert_array_equal(np.concatenate(goals), np.concatenate(first_goals))
        for one, other in zip(first, others, strict=True):
            for name in ("physics", "body_pos", "site_pos", "observation", "frame"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert repr(one.attributes) == repr(other.attributes)


def test_a_cached_model_is_the_compiled_one():
    xml = Path(ALL_V3_ENVIRONMENTS["door-open-v3"]().fullpath)
    compiled = mujoco.MjModel.from_xml_path(str(xml))
    for _ in range(2):
        for model in load_models([xml, xml], num_threads=2):
            assert to_bytes(model) == to_bytes(compiled)


def to_bytes(model: mujoco.MjModel) -> bytes:
    content = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, content)
    return content.tobytes()


def test_it_works_where_nothing_can_be_written(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    envs = make_environments(("reach-v3",), "v2", 1)
    goals = cached_goals(envs, ("reach-v3",), 42, one_stream=False)
    assert Template(envs[0], goals[0]).snapshot(0).observation.shape == (39,)


def test_folders_that_nothing_uses_are_removed(cache):
    old, recent = cache_folder("models", "old"), cache_folder("models", "recent")
    other = cache_folder("goals", "old")
    (old / "inside").write_text("x")
    long_ago = time.time() - (UNUSED_DAYS + 1) * 24 * 3600
    for folder in (old, other):
        os.utime(folder, (long_ago, long_ago))
    assert cache_folder("models", "new").is_dir()
    assert not old.exists()
    assert recent.exists()
    assert other.exists()  # each kind cleans up after itself
    assert cache_folder("goals", "old").stat().st_mtime > long_ago
