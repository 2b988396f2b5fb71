"""Pictures of MuJoCo simulations, the right way up."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import mujoco
import numpy as np
from numpy.typing import NDArray

from mtrl.errors import UserError

from .vector import MultiTaskVectorEnv

MAX_GEOMS = 10_000
UPSIDE_DOWN = -0.05  # height of a camera's up vector; looking straight down it is 0 up to rounding

Picture: TypeAlias = NDArray[np.uint8]
Camera: TypeAlias = str | int | mujoco.MjvCamera


class MujocoVectorEnv(MultiTaskVectorEnv):
    """Environments with a MuJoCo simulation each, which can be drawn.

    Attributes:
        render_mode: `rgb_array`, or None where pictures were not asked for.
    """

    _renderer: Renderer | None = None

    @abstractmethod
    def _physics(self, index: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """Return the model, positions of the goal being played included, and its simulation."""

    def render(
        self, indices: Sequence[int] | None = None, *, camera: Camera | None = None
    ) -> tuple[Picture, ...]:
        """Draw environments as they are now.

        Args:
            indices: Which; all K*N by default.
            camera: A camera's name or number in the model (`topview`, `corner`, `corner2`,
                `corner3`, `corner4`, `behindGripper`, `gripperPOV`) or a free one; default: the
                one chosen at construction.

        Returns:
            One picture (height, width, 3) of uint8 each.

        Raises:
            UserError: without `render_mode`, for an unknown camera, or where nothing can draw.
        """
        if self._options.render_mode is None:
            raise UserError("`render_mode` is None: make the environments with 'rgb_array'")
        self._refuse_closed()
        self._refuse_in_flight("render")
        if self._renderer is None:
            self._renderer = Renderer(*self._options.render_size)
        view = self._options.camera if camera is None else camera
        return tuple(
            self._renderer.draw(*self._physics(index), camera=view, key=index // self.envs_per_task)
            for index in (range(self.num_envs) if indices is None else indices)
        )

    def close_extras(self, **_: Any) -> None:
        """Free what drawing needs."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class Renderer:
    """Draws simulations of several models off screen."""

    def __init__(self, height: int, width: int) -> None:
        """Set up OpenGL.

        Args:
            height: Pixels.
            width: Pixels.

        Raises:
            UserError: if this machine can't draw.
        """
        self._height, self._width = height, width
        self._gl = _gl_context(width, height)
        self._contexts: dict[Hashable, tuple[mujoco.MjvScene, mujoco.MjrContext]] = {}
        # Also where nobody calls `close`, and before EGL's own exit handler, which came earlier:
        # of exit handlers the latest runs first.
        self._free = weakref.finalize(self, _free, self._gl, self._contexts)
        self._free.atexit = False
        atexit.register(self._free)

    def draw(
        self, model: mujoco.MjModel, data: mujoco.MjData, *, camera: Camera, key: Hashable
    ) -> Picture:
        """Draw one simulation.

        Args:
            model: Of the simulation.
            data: The simulation, after `mj_forward`.
            camera: Its name or number in the model, or a free camera.
            key: Names the model. Its meshes and textures are uploaded at the first picture.

        Returns:
            (height, width, 3). A camera that hangs upside down, as Meta-World's corner cameras do,
            is turned by 180 degrees.

        Raises:
            UserError: for a camera that the model has not.
        """
        view = _camera(model, camera)
        self._gl.make_current()
        scene, context = self._context(model, key)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        rectangle = mujoco.MjrRect(0, 0, self._width, self._height)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, view, everything, scene)
        mujoco.mjr_render(rectangle, scene, context)
        picture = np.empty((self._height, self._width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, rectangle, context)
        # OpenGL's rows run from the bottom up; those of a camera upside down from the top, and
        # its columns from the right.
        upside_down = scene.camera[0].up[2] < UPSIDE_DOWN
        picture = picture[:, ::-1] if upside_down else picture[::-1]
        return np.ascontiguousarray(picture)

    def close(self) -> None:
        """Free the graphics memory. May be called again."""
        self._free()
        atexit.unregister(self._free)

    def _context(
        self, model: mujoco.MjModel, key: Hashable
    ) -> tuple[mujoco.MjvScene, mujoco.MjrContext]:
        if key not in self._contexts:
            size = model.vis.global_
            size.offwidth = max(size.offwidth, self._width)
            size.offheight = max(size.offheight, self._height)
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
            self._contexts[key] = mujoco.MjvScene(model, MAX_GEOMS), context
        return self._contexts[key]


def _free(gl: Any, contexts: dict[Hashable, tuple[mujoco.MjvScene, mujoco.MjrContext]]) -> None:
    gl.make_current()
    for _, context in contexts.values():
        context.free()
    contexts.clear()
    gl.free()


def _camera(model: mujoco.MjModel, camera: Camera) -> mujoco.MjvCamera:
    if isinstance(camera, mujoco.MjvCamera):
        return camera
    names = [model.camera(index).name for index in range(model.ncam)]
    if camera not in names and camera not in range(model.ncam):
        raise UserError(f"`camera` is {camera!r}: choose one of {', '.join(names)}")
    view = mujoco.MjvCamera()
    view.type = mujoco.mjtCamera.mjCAMERA_FIXED
    view.fixedcamid = names.index(camera) if isinstance(camera, str) else camera
    return view


def _gl_context(width: int, height: int) -> Any:
    """Make an OpenGL context: as MUJOCO_GL says, or EGL where there is no display."""
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    try:
        if headless and not os.environ.get("MUJOCO_GL"):
            from mujoco.egl import GLContext
        else:
            from mujoco.gl_context import GLContext
        return GLContext(width, height)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"`render_mode`: no picture can be drawn here ({error}): install EGL (on Debian "
            "`libegl1`), or OSMesa and set MUJOCO_GL=osmesa"
        ) from error
