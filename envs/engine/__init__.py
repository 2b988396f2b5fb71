"""The fast exact engine: Meta-World stepped by compiled kernels, bit for bit as officially."""

from .vector import EngineVectorEnv

__all__ = ["EngineVectorEnv"]
