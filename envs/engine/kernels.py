"""One step of many environments: the official `SawyerXYZEnv.step`, compiled.

Every function here mirrors a piece of `metaworld.sawyer_xyz_env` and says which.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import native
from .compiler import kernel
from .exact import distance, rotation_to_quaternion
from .native import call_reward, doubles, fetch_add, floats, ints, longs
from .numerics import cos, sin
from .rig import (
    FRAME_SIZE,
    OBJECT_SIZE,
    OBSERVATION_SIZE,
    ROTATION_CONSTANT,
    ROTATION_QUATERNION,
)

_POSITION_STAGE = 1  # mjSTAGE_POS: mj_forwardSkip leaves out what depends on positions alone


@kernel
def step_chunks(
    chunks: NDArray[np.int64], next_chunk: int, finished: NDArray[np.bool_], *buffers: Any
) -> None:
    """Step chunk after chunk until all are taken; threads that call this at once share the work.

    They meet here and not in Python, where every chunk would have a thread wait for the GIL.

    Args:
        chunks: (C, 2) first row of each and one past its last row.
        next_chunk: Address of an int64, the number of the first chunk that nobody has taken.
        finished: (C,) set to True where a chunk has been stepped.
        buffers: What `step_rows` takes after the rows.
    """
    chunk = fetch_add(next_chunk, 1)
    while chunk < len(chunks):
        step_rows(chunks[chunk, 0], chunks[chunk, 1], *buffers)
        finished[chunk] = True
        chunk = fetch_add(next_chunk, 1)


@kernel
def step_rows(
    first: int,
    end: int,
    resting: NDArray[np.bool_],
    rigs: Any,
    live: Any,
    goal_body_pos: NDArray[np.float64],
    goal_site_pos: NDArray[np.float64],
    forwarded: NDArray[np.bool_],
    actions: NDArray[np.float32],
    previous: NDArray[np.float64],
    observations: NDArray[np.float64],
    diverged: NDArray[np.bool_],
) -> None:
    """Step the environments `first` to `end - 1`, E environments in all.

    Args:
        first: First row.
        end: One past the last row.
        resting: (E,) which are left as they are.
        rigs: (E,) records of `RIG_DTYPE`.
        live: Records of `LIVE_DTYPE`, those of one environment in a row.
        goal_body_pos: (E, *) the model's body positions under each environment's goal.
        goal_site_pos: (E, *) its site positions.
        forwarded: (E,) whether the simulation is as `mj_forward` left it, which is so after a
            step and not after a restored state. Set to True.
        actions: (E, 4).
        previous: (E, 18) the last frame observed. Replaced by the current one.
        observations: (E, 39) receives the observations.
        diverged: (E,) receives whether MuJoCo gave up on the simulation and reset it.
    """
    for row in range(first, end):
        if resting[row]:
            diverged[row] = False
            continue
        rig = rigs[row]
        _write(rig.body_pos, goal_body_pos[row], rig.num_body_pos)
        _write(rig.site_pos, goal_site_pos[row], rig.num_site_pos)
        # MuJoCo marks the bounding volumes it visits, for display, and clears all 136,000 marks
        # at every substep, more than a core's cache holds. With a count of zero it clears none.
        bvh_count = ints(rig.bvh_count, 1)
        num_bvh, bvh_count[0] = bvh_count[0], 0
        diverged[row] = _advance(rig, actions[row], forwarded[row])
        bvh_count[0] = num_bvh
        forwarded[row] = True
        if rig.reward == 0:
            continue
        _observe(rig, previous[row], observations[row])
        _fill_scene(rig, live, actions[row], observations[row])
        call_reward(rig.reward, rig.scene, rig.measures)


@kernel
def _write(address: int, values: NDArray[np.float64], size: int) -> None:
    target = doubles(address, size)
    for index in range(size):
        target[index] = values[index]


@kernel
def _read(address: int, values: NDArray[np.float64], size: int) -> None:
    _copy(doubles(address, size), values, size)


@kernel
def _copy(source: NDArray[np.float64], target: NDArray[np.float64], size: int) -> None:
    for index in range(size):
        target[index] = source[index]


@kernel
def _advance(rig: Any, action: NDArray[np.float32], forwarded: bool) -> bool:
    """`set_xyz_action`, `do_simulation` and `mj_forward`; True if the simulation diverged."""
    set_action(rig, action)
    time = doubles(rig.time, 1)
    before = time[0]
    if forwarded:
        _substep_after_forward(rig.mjmodel, rig.mjdata)
    else:
        native.mj_step(rig.mjmodel, rig.mjdata)
    for _ in range(rig.frame_skip - 1):
        native.mj_step(rig.mjmodel, rig.mjdata)
    # What the last substep broke would else be found by the next step, an observation too late.
    native.mj_check_pos(rig.mjmodel, rig.mjdata)
    native.mj_check_vel(rig.mjmodel, rig.mjdata)
    native.mj_forward(rig.mjmodel, rig.mjdata)
    native.mj_check_acc(rig.mjmodel, rig.mjdata)
    # On a bad position, velocity or acceleration MuJoCo resets the simulation, time included.
    return bool(time[0] <= before)


@kernel
def set_action(rig: Any, action: NDArray[np.float32]) -> None:
    """Move the hand's target by a delta in float32 and command the fingers."""
    mocap_pos = doubles(rig.mocap_pos, 3)
    for axis in range(3):
        clipped = min(max(action[axis], np.float32(-1.0)), np.float32(1.0))
        moved = mocap_pos[axis] + float(np.float32(clipped * rig.action_scale))
        mocap_pos[axis] = min(max(moved, rig.mocap_low[axis]), rig.mocap_high[axis])
    mocap_quat = doubles(rig.mocap_quat, 4)
    mocap_quat[0] = mocap_quat[2] = 1.0
    mocap_quat[1] = mocap_quat[3] = 0.0
    ctrl = doubles(rig.ctrl, 2)
    ctrl[0] = float(action[3])
    ctrl[1] = -ctrl[0]


@kernel
def _substep_after_forward(model: int, data: int) -> None:
    """`mj_step` on a simulation where only the mocap body and the controls changed.

    The previous step ended with `mj_forward`. Inertias and contacts still hold; the mocap weld
    does not, so its kinematics and constraint rows are computed anew, and nothing else that
    depends on positions.
    """
    native.mj_check_pos(model, data)
    native.mj_check_vel(model, data)
    native.mj_kinematics(model, data)
    native.mj_com_pos(model, data)
    native.mj_make_constraint(model, data)
    native.mj_project_constraint(model, data)
    native.mj_forward_skip(model, data, _POSITION_STAGE, 0)
    native.mj_check_acc(model, data)
    native.mj_euler(model, data)


@kernel
def _observe(rig: Any, previous: NDArray[np.float64], observation: NDArray[np.float64]) -> None:
    """`_get_obs` and the clipping that `step` applies to it."""
    _copy(previous, observation[FRAME_SIZE:], FRAME_SIZE)
    _read(rig.hand, previous, 3)
    opening = distance(doubles(rig.right_claw, 3), doubles(rig.left_claw, 3)) / 0.1
    previous[3] = min(max(opening, 0.0), 1.0)
    for slot in range(rig.num_objects):
        start = 4 + slot * OBJECT_SIZE
        _observe_object(rig, slot, previous[start : start + OBJECT_SIZE])
    _copy(previous, observation, FRAME_SIZE)
    # Elsewhere the goal was entered at the episode's start. It may lie outside its bounds.
    if rig.goal != 0:
        _read(rig.goal, observation[2 * FRAME_SIZE :], 3)
    for index in range(OBSERVATION_SIZE):
        low, high = rig.obs_low[index], rig.obs_high[index]
        observation[index] = min(max(observation[index], low), high)


@kernel
def _observe_object(rig: Any, slot: int, out: NDArray[np.float64]) -> None:
    """`_get_pos_objects` and `_get_quat_objects` of one object."""
    position = doubles(rig.object_position[slot], 3)
    for axis in range(3):
        out[axis] = position[axis] + rig.object_offset[slot, axis]
    if rig.dial_angle[slot] != 0:
        angle = doubles(rig.dial_angle[slot], 1)[0]
        out[0] += sin(angle) * rig.dial_radius[slot]
        out[1] += -cos(angle) * rig.dial_radius[slot]
    kind = rig.rotation_kind[slot]
    if kind == ROTATION_CONSTANT:
        _copy(rig.constant_rotation[slot], out[3:], 4)
    elif kind == ROTATION_QUATERNION:
        _read(rig.object_rotation[slot], out[3:], 4)
    else:
        rotation_to_quaternion(doubles(rig.object_rotation[slot], 9), out[3:])


@kernel
def _fill_scene(
    rig: Any, live: Any, action: NDArray[np.float32], observation: NDArray[np.float64]
) -> None:
    """Enter this step's values in the record that the reward reads."""
    scene_action = floats(rig.scene_action, 4)
    for index in range(4):
        scene_action[index] = action[index]
    _write(rig.scene_obs, observation, OBSERVATION_SIZE)
    right_tip, left_tip = doubles(rig.right_tip, 3), doubles(rig.left_tip, 3)
    tcp = doubles(rig.scene_tcp, 3)
    for axis in range(3):
        tcp[axis] = (right_tip[axis] + left_tip[axis]) / 2.0
    _write(rig.scene_left_pad, doubles(rig.left_pad, 3), 3)
    _write(rig.scene_right_pad, doubles(rig.right_pad, 3), 3)
    for index in range(rig.first_live, rig.end_live):
        entry = live[index]
        _write(entry.target, doubles(entry.source, entry.count), entry.count)
    if rig.object_geom >= 0:
        touching = (
            _pad_force(rig, rig.left_pad_geom) > 0 and _pad_force(rig, rig.right_pad_geom) > 0
        )
        doubles(rig.scene_touching, 1)[0] = 1.0 if touching else 0.0


@kernel
def _pad_force(rig: Any, pad: int) -> float:
    """One pad's share of `touching_object`: the normal forces between it and the object."""
    num_contacts = ints(rig.ncon, 1)[0]
    num_rows = ints(rig.nefc, 1)[0]
    if num_rows == 0:
        return 0.0
    contacts = longs(rig.contact, 1)[0]
    forces = doubles(longs(rig.efc_force, 1)[0], num_rows)
    total = 0.0
    for index in range(num_contacts):
        contact = contacts + index * rig.contact_size
        geoms = ints(contact + rig.geom1, 2)
        first, second = geoms[0], geoms[1]
        if pad in (first, second) and rig.object_geom in (first, second):
            # A contact without a row has the address -1, which Python takes for the last row.
            total += forces[ints(contact + rig.efc_address, 1)[0] % num_rows]
    return total
