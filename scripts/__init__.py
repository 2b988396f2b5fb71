"""What a user runs: parse, build, go."""

import os

# Read when torch loads, so it has to be set here. By default torch's threads spin while they wait;
# beside anything else that computes, that makes updates many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
