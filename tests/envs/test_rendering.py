import itertools
import subprocess
import sys

import mujoco
import numpy as np
import pytest

import envs
from mtrl.errors import UserError

SIZE = (60, 80)


@pytest.fixture
def make():
    made = []

    def make(tasks=("push-v3", "door-open-v3"), **options):
        options = {"render_mode": "rgb_array", "render_size": SIZE, "seed": 0} | options
        made.append(envs.make_vec(tasks, **options))
        made[-1].reset(options={"goal_indices": np.zeros(made[-1].num_envs, int)})
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture
def draw(make):
    def draw(env, *arguments, **options):
        try:
            return env.render(*arguments, **options)
        except UserError as error:
            if "no picture can be drawn" in str(error):
                pytest.skip(str(error))
            raise

    return draw


def test_pictures_show_the_state_of_each_environment(make, draw):
    fast, official = make(engine="fast", envs_per_task=2), make(engine="official", envs_per_task=2)
    for _ in range(5):
        actions = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
        fast.step(actions)
        official.step(actions)
    pictures = draw(fast)
    assert len(pictures) == 4
    for one, other in zip(pictures, draw(official), strict=True):
        assert one.shape == (*SIZE, 3)
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, other)
    assert len({picture.tobytes() for picture in pictures}) == 4
    np.testing.assert_array_equal(draw(fast, [2])[0], pictures[2])


def test_a_restored_state_is_drawn_and_drawing_disturbs_nothing(make, draw):
    env, twin = make(), make()
    np.testing.assert_array_equal(draw(env), draw(make(engine="official")))  # after a reset
    actions = np.float32([[0.5, 0.5, -0.5, 1]] * 2)
    for each in (env, twin):
        each.step(actions)
    state, pictures = env.get_state(), draw(env)
    env.step(actions)
    env.set_state(state)
    np.testing.assert_array_equal(draw(env), pictures)
    twin.set_state(state)
    for _ in range(3):
        draw(env)
        np.testing.assert_array_equal(env.step(actions)[0], twin.step(actions)[0])


@pytest.mark.parametrize("name", ["corner", "corner2", "corner3", "corner4"])
def test_what_goes_up_goes_up_in_the_picture_and_nothing_is_mirrored(make, draw, name):
    env = make("reach-v3", camera=name, render_size=(240, 320))
    physics = env._simulation.data[0]
    axes = physics.cam(name).xmat.reshape(3, 3)
    places = []
    for action in ([0, 0, -1, 0], [0, 0, 1, 0], [-0.4, 0, 0, 0], [0.8, 0, 0, 0]):
        for _ in range(20):
            env.step(np.float32([action]))
        picture = draw(env)[0].astype(int)
        red, green, blue = np.moveaxis(picture, -1, 0)
        finger = (green > red + 60) & (blue > red + 60)  # the left one is cyan
        assert finger.sum() > 5
        places.append((np.argwhere(finger).mean(0), physics.body("leftpad").xpos.copy()))
    turn = -1 if axes[2, 1] < -0.05 else 1
    for (pixel, place), (next_pixel, next_place) in itertools.pairwise(places):
        right, up = (next_place - place) @ axes[:, :2] * turn
        rows, columns = next_pixel - pixel
        if abs(up) > 0.05:
            assert np.sign(rows) == -np.sign(up)
        if abs(right) > 0.05:
            assert np.sign(columns) == np.sign(right)


def test_a_free_camera_and_one_by_number(make, draw):
    env = make("push-v3")
    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance, camera.azimuth = (0, 0.6, 0.1), 1.5, 90
    pictures = [draw(env, camera=view)[0] for view in (camera, 2, "corner2", "topview")]
    np.testing.assert_array_equal(pictures[1], pictures[2])
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_the_interpreter_ends_quietly_without_close(make, draw):
    draw(make("reach-v3"))  # skips where nothing can be drawn
    code = """
import envs
env = envs.make_vec("reach-v3", seed=0, render_mode="rgb_array")
env.reset()
env.render()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_bad_input_is_named(make):
    with pytest.raises(UserError, match="`render_mode` is 'human'"):
        make(render_mode="human")
    with pytest.raises(UserError, match="toy"):
        make("toy")
    with pytest.raises(UserError, match="`render_size` is 0"):
        make(render_size=(0, 10))
    with pytest.raises(UserError, match="'rgb_array'"):
        make(render_mode=None).render()
    with pytest.raises(UserError, match=r"`camera` is 'corner9': choose .*corner4"):
        make("push-v3", camera="corner9").render()


def test_nothing_to_draw_with_is_said(make, monkeypatch):
    monkeypatch.setattr("mujoco.egl.GLContext", _refuse)
    monkeypatch.setattr("mujoco.gl_context.GLContext", _refuse)
    with pytest.raises(UserError, match="install EGL"):
        make("push-v3").render()


def _refuse(*_):
    raise RuntimeError("no device")
