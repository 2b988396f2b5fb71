"""The multi-task core of mtrl: per-task gradients, weightings, replay, loop, evaluation, storage.

It knows no agent and no environment: `agents` and `envs` are built on it.
"""
