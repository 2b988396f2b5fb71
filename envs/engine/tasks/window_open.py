"""window-open-v3: slide the window open by its handle."""

from typing import Any

from ..exact import distance
from ..scene import ObservedObject, Task, position
from ..shaping import hamacher_product, tolerance

_TARGET_RADIUS = 0.05
_HANDLE_RADIUS = 0.02


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerWindowOpenEnvV3`."""
    obj = s.obs[4:7]
    target_to_obj = abs(obj[0] - s.target_pos[0])
    target_to_obj_init = abs(s.obj_init_pos[0] - s.target_pos[0])
    in_place = tolerance(
        target_to_obj,
        bounds=(0.0, _TARGET_RADIUS),
        margin=abs(target_to_obj_init - _TARGET_RADIUS),
    )

    tcp_to_obj = distance(obj, s.tcp)
    reach = tolerance(
        tcp_to_obj,
        bounds=(0.0, _HANDLE_RADIUS),
        margin=abs(distance(s.window_handle_pos_init, s.init_tcp) - _HANDLE_RADIUS),
    )

    out.reward = 10.0 * hamacher_product(reach, in_place)
    out.success = target_to_obj <= _TARGET_RADIUS
    out.near_object = tcp_to_obj <= 0.05
    out.grasp_success = 1.0
    out.grasp_reward = reach
    out.in_place_reward = in_place
    out.obj_to_target = target_to_obj


TASK = Task(
    evaluate=evaluate,
    objects=(ObservedObject(position("site", "handleOpenStart"), (0.0, 0.0, 0.0, 0.0)),),
    constants=("_target_pos", "obj_init_pos", "init_tcp", "window_handle_pos_init"),
)
