"""Trains on toy tasks while the wall clock jumps by a year, to and fro. Options as usual."""

import itertools
import time

from scripts.training import main

YEAR = 365 * 24 * 3600
now, now_ns, jumps = time.time, time.time_ns, itertools.cycle((0, YEAR, -YEAR))
time.time = lambda: now() + next(jumps)
time.time_ns = lambda: now_ns() + next(jumps) * 10**9
main("toy")
