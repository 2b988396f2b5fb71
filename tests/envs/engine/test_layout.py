import ctypes

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from envs.engine.layout import mjdata_layout


def test_fields_are_found_in_a_real_simulation():
    env = ALL_V3_ENVIRONMENTS["push-v3"]()
    env._freeze_rand_vec = False
    env._set_task_called = True
    env.reset()
    data, layout = env.data, mjdata_layout()
    for _ in range(3):
        mujoco.mj_step(env.model, data)
        start = data._address
        assert ctypes.c_double.from_address(start + layout.time).value == data.time
        assert ctypes.c_int32.from_address(start + layout.ncon).value == data.ncon > 0
        assert ctypes.c_int32.from_address(start + layout.nefc).value == data.nefc > 0
        forces = ctypes.c_uint64.from_address(start + layout.efc_force).value
        assert forces == data.efc_force.ctypes.data
        contacts = ctypes.c_uint64.from_address(start + layout.contact).value
        for index in range(data.ncon):
            contact = contacts + index * layout.contact_size
            geoms = (ctypes.c_int32 * 2).from_address(contact + layout.geom1)
            np.testing.assert_array_equal(list(geoms), data.contact.geom[index])
            row = ctypes.c_int32.from_address(contact + layout.efc_address).value
            assert row == data.contact.efc_address[index]
    env.close()
