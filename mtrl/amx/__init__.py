"""Layers and tasks' gradients in bf16 on processors that multiply matrices whole, Intel's AMX.

`operators` is what the rest calls: layers there and back, Gramians, weighted sums, as `mtrl.layers`
and `mtrl.gradients` have them for all devices.
"""
