"""Thousands of broken checkpoints: each ends in a clear error or in a state that is right.

Longer: MTRL_FUZZ_CASES=100000 python -m pytest tests/mtrl/test_checkpoint_fuzz.py
"""

from __future__ import annotations

import copy
import functools
import json
import operator
import os
import random
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

import envs
from agents import SAC, SACConfig
from mtrl.checkpoint import CheckpointError, load_checkpoint, load_latest, save_checkpoint
from mtrl.errors import UserError
from mtrl.manifest import Label, write_manifest
from mtrl.replay import Replay
from mtrl.seeding import make_generator
from mtrl.state_tree import fingerprint
from mtrl.train import Schedule, Trainer

CASES = int(os.environ.get("MTRL_FUZZ_CASES", "2000"))
FILES = ("tensors.safetensors", "state.json", "manifest.json")


def make_trainer(save=None):
    environments = envs.make_vec("toy", seed=1, envs_per_task=2, max_episode_steps=7, one_hot=False)
    config = SACConfig(critic_width=4, critic_depth=1, actor_width=4, actor_depth=1)
    return Trainer(
        agent=SAC(config, num_tasks=4, observation_size=4, action_size=2, seed=1),
        envs=environments,
        replay=Replay(4, 30, 4, 2, generator=make_generator(1, "replay")),
        schedule=Schedule(
            total_steps=160,
            warmup_steps=40,
            batch_size=4,
            update_ratio=0.2,
            log_every=10**9,
            eval_every=10**9,
            checkpoint_every=10**9,
        ),
        logger=type("Silence", (), {"log": lambda *_: None, "close": lambda _: None})(),
        evaluate=lambda agent: None,
        save=save,
        stop=lambda: False,
        generator=make_generator(1, "warm-up"),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Give two checkpoints of one training, and what is in the first."""
    directory = tmp_path_factory.mktemp("saved")
    trainer = make_trainer(
        save=lambda state, env_steps: save_checkpoint(directory, state, env_steps=env_steps)
    )
    trainer.stop = lambda: trainer.progress.env_steps >= 80
    trainer.run()
    trainer.stop = lambda: False
    trainer.run()
    first, second = sorted(directory.iterdir())
    return first, second


def flip(content, generator):
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 8))):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def cut(content, generator):
    return content[: generator.randrange(len(content))]


def append(content, generator):
    return content + generator.randbytes(generator.randrange(1, 64))


def edit_header(content, generator):
    """Change the header of safetensors: shapes, offsets, names, or its own length."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = generator.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    match generator.randrange(6):
        case 0:
            entry["shape"] = [generator.choice((0, 1, 3, 2**40, -1)) for _ in entry["shape"]]
        case 1:
            entry["data_offsets"] = [generator.randrange(2**34) for _ in "ab"]
        case 2:
            entry["dtype"] = generator.choice(("F64", "F16", "BF16", "I8", "X", None))
        case 3:
            header[f"{name}/more"] = header.pop(name)
        case 4:
            del header[name]
        case 5:
            return generator.randbytes(8) + content[8:]
    edited = json.dumps(header).encode()
    return len(edited).to_bytes(8, "little") + edited + content[8 + length :]


def reshape(content, generator):
    """Replace an array by a shorter or longer one, data included."""
    arrays = safetensors.torch.load(content)
    name = generator.choice(sorted(arrays))
    arrays[name] = of_another_shape(arrays[name], generator)
    return safetensors.torch.save(arrays)


def of_another_shape(tensor, generator):
    first, *rest = tensor.shape or (1,)
    shapes = [(first + 1, *rest), (1, first, *rest), (first // 2, *rest), (1,), ()]
    return torch.zeros(
        generator.choice([shape for shape in shapes if shape != tuple(tensor.shape)]),
        dtype=tensor.dtype,
    )


STRANGE = (
    *(None, True, -1, 0, 7, 2**70, 1.5, -1e308, "", "replay/starts", [], {}, [[]] * 9),
    *({"dict": {}}, {"tensor": "replay/starts"}, {"numpy": "x"}, {"float": "nan"}, {"float": []}),
)


def edit_json(content, generator):
    """Change, remove or add a node somewhere in the tree."""
    tree = json.loads(content)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = generator.choice(keys)
        deeper = node[key]
        if not isinstance(deeper, dict | list) or generator.random() < 0.15:
            match generator.randrange(4):
                case 0:
                    del node[key]
                case 1 if isinstance(node, dict):
                    node[f"{key}x"] = deeper
                case _:
                    node[key] = generator.choice(STRANGE)
            break
        node = deeper
    return json.dumps(tree).encode()


def swap(path, other, generator):
    """Exchange a file for the other checkpoint's, or two of its own."""
    first, second = generator.sample(FILES, 2)
    source = generator.choice((other / first, path / second))
    (path / first).write_bytes(source.read_bytes())


def mutate(path, other, generator):
    """Break a checkpoint somehow; say how, and whether its manifest was renewed."""
    name = generator.choice(FILES)
    kinds = [flip, cut, append]
    kinds += [edit_json] * 3 if name != FILES[0] else [edit_header, edit_header, reshape, reshape]
    kind = generator.choice([*kinds, swap])
    if kind is swap:
        swap(path, other, generator)
    else:
        (path / name).write_bytes(kind((path / name).read_bytes(), generator))
    renewed = generator.random() < 0.6
    if renewed:  # so that what lies behind the digests is reached
        write_manifest(path, FILES[:2], Label(generator.choice((0, 80, 160))))
    return f"{kind.__name__} {name}{' renewed' if renewed else ''}", renewed


def load(path):
    """Return the state, or None and the message."""
    try:
        return load_checkpoint(path).state, ""
    except CheckpointError as error:
        return None, str(error)


def test_every_broken_checkpoint_ends_in_a_clear_error_or_a_correct_load(saved, tmp_path):
    first, second = saved
    contents = {fingerprint(load_checkpoint(path).state) for path in (first, second)}
    generator = random.Random(CASES)
    outcomes = {"refused": 0, "loaded": 0, "misfit": 0}
    trainer = make_trainer(save=lambda state, env_steps: None)
    for case in range(CASES):
        directory = tmp_path / "run"
        shutil.copytree(second, directory / second.name)
        how, renewed = mutate(directory / second.name, first, generator)
        state, error = load(directory / second.name)
        shutil.rmtree(directory)
        if state is None:
            assert second.name in error, f"case {case}: {how}: {error}"
            assert "\n" not in error, f"case {case}: {how}: {error}"
            outcomes["refused"] += 1
            continue
        assert renewed or fingerprint(state) in contents, f"case {case}: {how}"
        try:
            trainer.load_state_dict(state)
        except Exception:  # of which scripts make one line
            outcomes["misfit"] += 1
            continue
        outcomes["loaded"] += 1
        if outcomes["loaded"] % 5 == 0:  # what was taken in does not bring it down later
            trainer.agent.update(trainer.replay.sample(4))
            trainer.envs.step(np.zeros((8, 2), np.float32))
            trainer._episodes.pop_metrics()
    assert all(outcomes.values()), outcomes


def arrays_of(state, path=()):
    for name, value in state.items():
        if isinstance(value, dict):
            yield from arrays_of(value, (*path, name))
        elif isinstance(value, torch.Tensor):
            yield (*path, name)


def test_no_array_of_another_shape_or_type_is_taken_into_an_agent(saved):
    """Fused Adam checks no shapes and writes beside short moments; copies broadcast."""
    state = load_checkpoint(saved[1]).state["agent"]
    generator = random.Random(1)
    agent = make_trainer(save=lambda state, env_steps: None).agent
    before = fingerprint(agent.state_dict())
    for *path, name in arrays_of(state):
        broken = copy.deepcopy(state)
        node = functools.reduce(operator.getitem, path, broken)
        sound = node[name]
        others = [sound.double()]
        if "generator" not in name:  # whose states have other lengths on other devices
            others += [of_another_shape(sound, generator)]
        for node[name] in others:
            with pytest.raises(ValueError, match="/".join(["state", *path, name])):
                agent.load_state_dict(broken)
            assert fingerprint(agent.state_dict()) == before


def test_the_newest_good_one_is_used_whatever_happened_to_the_newest(saved, tmp_path, caplog):
    first, second = saved
    expected = fingerprint(load_checkpoint(first).state)
    generator = random.Random(1)
    for _ in range(CASES // 30):
        directory = tmp_path / "run"
        for path in saved:
            shutil.copytree(path, directory / path.name)
        name = generator.choice(FILES)
        file = directory / second.name / name
        file.write_bytes(generator.choice((flip, cut, append))(file.read_bytes(), generator))
        caplog.clear()
        try:
            loaded = load_latest(directory)
        except UserError as error:
            pytest.fail(str(error))
        assert fingerprint(loaded.state) == expected
        assert second.name in caplog.text
        shutil.rmtree(directory)


def test_a_tensor_that_claims_to_be_huge_is_refused_before_any_memory_is_taken(saved, tmp_path):
    path = tmp_path / saved[1].name
    shutil.copytree(saved[1], path)
    file = path / FILES[0]
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = "replay/observations"
    header[name] |= {"shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    edited = json.dumps(header).encode()
    file.write_bytes(len(edited).to_bytes(8, "little") + edited + content[8 + length :])
    write_manifest(path, FILES[:2], Label(160))
    with pytest.raises(CheckpointError, match="cannot be restored"):
        load_checkpoint(path)
