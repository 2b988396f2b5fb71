"""coffee-pull-v3: pull the mug to the goal."""

from typing import Any

from ..caging import gripper_caging_reward
from ..exact import distance, plus, scaled_distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, tolerance


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerCoffeePullEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    # Errors in x and y weigh more.
    scale = (2.0, 2.0, 1.0)
    target_to_obj = scaled_distance(obj, s.target_pos, scale)
    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, 0.05),
        margin=scaled_distance(s.obj_init_pos, s.target_pos, scale),
    )
    tcp_to_obj = distance(obj, s.tcp)

    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        object_reach_radius=0.04,
        obj_radius=0.02,
        pad_success_thresh=0.05,
        xz_thresh=0.05,
        desired_gripper_effort=0.7,
        medium_density=True,
    )

    reward = hamacher_product(object_grasped, in_place, single)
    if tcp_to_obj < 0.04 and tcp_opened > 0:
        reward = plus(reward, 1.0 + 5.0 * in_place, single)
    if target_to_obj < 0.05:
        reward = 10.0

    obj_to_target = distance(obj, s.target_pos)
    out.reward = reward
    out.success = obj_to_target <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = s.touching > 0 and tcp_opened > 0
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("body", "obj"), rotation_matrix("geom", "mug")),),
    constants=(
        "_target_pos",
        "obj_init_pos",
        "init_tcp",
    ),
    touching="mug",
)
