"""button-press-v3: press the button."""

from typing import Any

from ..exact import distance
from ..scene import ObservedObject, Task, position, quaternion
from ..shaping import hamacher_product, tolerance


def evaluate(s: Any, out: Any) -> None:
    """Mirror `SawyerButtonPressEnvV3`."""
    obj = s.obs[4:7]
    tcp_to_obj = distance(obj, s.tcp)
    obj_to_target = abs(s.target_pos[1] - obj[1])

    tcp_closed = max(s.obs[3], 0.0)
    near_button = tolerance(tcp_to_obj, bounds=(0.0, 0.05), margin=distance(obj, s.init_tcp))
    button_pressed = tolerance(obj_to_target, bounds=(0.0, 0.005), margin=s.obj_to_target_init)

    reward = 2.0 * hamacher_product(tcp_closed, near_button)
    if tcp_to_obj <= 0.05:
        reward += 8.0 * button_pressed

    out.reward = reward
    out.success = obj_to_target <= 0.02
    out.near_object = tcp_to_obj <= 0.05
    out.grasp_success = s.obs[3] > 0
    out.grasp_reward = near_button
    out.in_place_reward = button_pressed
    out.obj_to_target = obj_to_target


TASK = Task(
    evaluate=evaluate,
    objects=(
        ObservedObject(position("body", "button"), quaternion("button"), offset=(0.0, -0.193, 0.0)),
    ),
    constants=(
        "_target_pos",
        "init_tcp",
        "_obj_to_target_init",
    ),
)
