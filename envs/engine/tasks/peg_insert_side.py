"""peg-insert-side-v3: pick up the peg and insert it sideways."""

from typing import Any

from ..caging import gripper_caging_reward
from ..exact import distance, scaled_distance
from ..scene import ObservedObject, Task, position, rotation_matrix
from ..shaping import hamacher_product, rect_prism_tolerance, tolerance

_TARGET_RADIUS = 0.07


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerPegInsertionSideEnvV3`."""
    obj = s.obs[4:7]
    tcp_opened = s.obs[3]
    tcp_to_obj = distance(obj, s.tcp)
    scale = (1.0, 2.0, 2.0)
    obj_to_target = scaled_distance(s.obj_head, s.target_pos, scale)

    in_place = tolerance(
        obj_to_target,
        bounds=(0.0, _TARGET_RADIUS),
        margin=scaled_distance(s.peg_head_pos_init, s.target_pos, scale),
    )
    collision_box_1, inside_1 = rect_prism_tolerance(
        curr=s.obj_head, zero=s.brc_col_box_1, one=s.tlc_col_box_1
    )
    collision_box_2, inside_2 = rect_prism_tolerance(
        curr=s.obj_head, zero=s.brc_col_box_2, one=s.tlc_col_box_2
    )
    collision_boxes = hamacher_product(collision_box_2, collision_box_1)
    in_place = hamacher_product(in_place, collision_boxes)

    object_grasped, single = gripper_caging_reward(
        s,
        obj,
        s.obj_init_pos,
        object_reach_radius=0.01,
        obj_radius=0.0075,
        pad_success_thresh=0.03,
        xz_thresh=0.005,
        high_density=True,
    )
    lifted = tcp_opened > 0 and obj[2] - 0.01 > s.obj_init_pos[2]
    if tcp_to_obj < 0.08 and lifted:
        object_grasped, single = 1.0, False
    # Inside a box `in_place` is a NumPy float64, which does not give way to float32.
    single = single and not (inside_1 or inside_2)
    reward = hamacher_product(object_grasped, in_place, single)
    if tcp_to_obj < 0.08 and lifted:
        reward += 1.0 + 5.0 * in_place
    if obj_to_target <= 0.07:
        reward = 10.0

    out.reward = reward
    out.success = obj_to_target <= 0.07
    out.near_object = tcp_to_obj <= 0.03
    out.grasp_success = tcp_to_obj < 0.02 and lifted
    out.grasp_reward = object_grasped
    out.in_place_reward = in_place
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("site", "pegGrasp"), rotation_matrix("site", "pegGrasp")),),
    constants=("_target_pos", "obj_init_pos", "init_tcp", "peg_head_pos_init"),
    live={
        "obj_head": position("site", "pegHead"),
        "brc_col_box_1": position("site", "bottom_right_corner_collision_box_1"),
        "tlc_col_box_1": position("site", "top_left_corner_collision_box_1"),
        "brc_col_box_2": position("site", "bottom_right_corner_collision_box_2"),
        "tlc_col_box_2": position("site", "top_left_corner_collision_box_2"),
    },
)
