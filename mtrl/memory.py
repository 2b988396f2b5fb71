"""How much memory there is, asked before it is needed."""

from __future__ import annotations

from pathlib import Path

import torch

from .errors import UserError


def require_memory(
    needs: dict[str, int], device: torch.device, *, system: Path = Path("/")
) -> None:
    """Refuse what cannot fit, naming the option that asks for the most.

    Operating systems promise more memory than they have and kill whoever uses it, so a buffer
    that fills slowly would end a training after hours.

    Args:
        needs: Bytes by option, such as ``"--batch-size 64"``, to be held at the same time.
        device: Where.
        system: Root of the file system that tells of this machine's memory.

    Raises:
        UserError: If there is less memory than that.
    """
    available = available_memory(device, system=system)
    if available is None or sum(needs.values()) <= available:
        return
    option = max(needs, key=lambda name: needs[name])
    flag, _, value = option.partition(" ")
    raise UserError(
        f"`{flag}` is {value}: that takes {needs[option] / 2**30:,.1f} GiB of memory, "
        f"{sum(needs.values()) / 2**30:,.1f} with the rest, and {device} has "
        f"{available / 2**30:,.1f} to spare; give less."
    )


def available_memory(device: torch.device, *, system: Path = Path("/")) -> int | None:
    """Return the bytes that can still be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = (system / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _left_in_control_group(system / "sys/fs/cgroup")
    return machine if limit is None else min(machine, limit)


def _left_in_control_group(directory: Path) -> int | None:
    """Return what a container's limit leaves; None where there is no limit."""
    try:
        limit = int((directory / "memory.max").read_text())  # "max" if there is none
        used = int((directory / "memory.current").read_text())
        statistics = dict(
            line.split() for line in (directory / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):
        return None
    return limit - used + int(statistics["inactive_file"])  # the system takes that back at need
