"""Where the few fields that Python cannot view permanently lie inside MuJoCo's structs.

Most arrays of `mjData` keep their address for life and are read through it. Contacts and
constraint forces move with every step, and the counters are plain members of the structs; their
offsets differ between MuJoCo versions, so they are found by looking for known values.
"""

import ctypes
import functools
from dataclasses import dataclass

import mujoco
import numpy as np

from ..errors import EngineUnfitError

# Counters that differ from each other: 8 contacts (two boxes' corners), 3 equality rows, 1 limit.
_PROBE_XML = """
<mujoco>
  <worldbody>
    <geom type="plane" size="5 5 .1"/>
    <body pos="0 0 .0999"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
    <body name="held" pos="2 0 .0999"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
    <body pos="4 0 2">
      <joint type="hinge" axis="0 1 0" range="1 2" limited="true"/>
      <geom type="sphere" size=".1" pos=".3 0 0"/>
    </body>
  </worldbody>
  <equality><connect body1="held" anchor="0 0 0"/></equality>
</mujoco>
"""
_MAX_STRUCT_BYTES = 1 << 20
_BLOCK_BYTES = 4096
_SIZES_BYTES = 256  # mjModel begins with its sizes, some 80 of them


@dataclass(frozen=True)
class Layout:
    """Byte offsets.

    Attributes:
        time: of the simulation time (float64) in `mjData`.
        ncon: of the number of contacts (int32).
        nefc: of the number of constraint rows (int32).
        contact: of the pointer to the first contact.
        efc_force: of the pointer to the constraint forces.
        contact_size: of one contact to the next.
        geom1: of the first geom's id (int32) in a contact; the second's follows.
        efc_address: of the contact's first constraint row (int32) in a contact.
    """

    time: int
    ncon: int
    nefc: int
    contact: int
    efc_force: int
    contact_size: int
    geom1: int
    efc_address: int


@functools.cache
def mjdata_layout() -> Layout:
    """Find the offsets in the installed MuJoCo.

    Raises:
        EngineUnfitError: if they cannot be found without doubt.
    """
    model = mujoco.MjModel.from_xml_string(_PROBE_XML)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    data.time = 1234.5678
    counters = np.array(
        [data.ncon, data.ne, data.nf, data.nl, data.nefc, data.nJ], np.int32
    ).tobytes()
    contact = data.contact
    struct = _head_of_struct(data, data.efc_force.ctypes.data)
    return Layout(
        time=_only(struct, np.float64(data.time).tobytes()),
        ncon=_only(struct, counters),
        nefc=_only(struct, counters) + 16,
        contact=_only(struct, _pointer(contact.dist.ctypes.data), last=True),
        efc_force=_only(struct, _pointer(data.efc_force.ctypes.data)),
        contact_size=contact.dist.strides[0],
        geom1=contact.geom1.ctypes.data - contact.dist.ctypes.data,
        efc_address=contact.efc_address.ctypes.data - contact.dist.ctypes.data,
    )


@functools.cache
def bvh_count_offset() -> int | None:
    """Find the number of bounding volumes (int32) in `mjModel`; None where it is in doubt."""
    model = mujoco.MjModel.from_xml_string(_PROBE_XML)
    neighbours = ("nbody", "nbvh", "nbvhstatic", "nbvhdynamic", "njnt", "ngeom", "nsite")
    wanted = np.array([getattr(model, name) for name in neighbours], np.int32).tobytes()
    struct = ctypes.string_at(model._address, _SIZES_BYTES)
    offset = struct.find(wanted)
    return None if offset < 0 or struct.find(wanted, offset + 1) >= 0 else offset + 4


def _pointer(address: int) -> bytes:
    return np.uint64(address).tobytes()


def _head_of_struct(data: mujoco.MjData, last_pointer: int) -> bytes:
    """Read from the struct's start to the block that holds `last_pointer`, and no further."""
    struct = b""
    while _pointer(last_pointer) not in struct:
        if len(struct) >= _MAX_STRUCT_BYTES:
            raise EngineUnfitError("the constraint forces are not where MuJoCo used to keep them")
        struct += ctypes.string_at(data._address + len(struct), _BLOCK_BYTES)
    return struct


def _only(struct: bytes, value: bytes, *, last: bool = False) -> int:
    """Find the one offset of `value`, or the last: the arena begins where the contacts do."""
    offset = struct.rfind(value)
    if offset < 0 or offset % 4 or (not last and struct.find(value) != offset):
        raise EngineUnfitError(f"mjData of MuJoCo {mujoco.__version__} has an unknown layout")
    return offset
