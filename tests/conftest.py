"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every run and machine: a failure is a failure of the change under test.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
