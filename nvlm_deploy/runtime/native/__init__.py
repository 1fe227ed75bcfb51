"""The native runtime, libnvlm, through its C interface: no compiler is needed, ctypes calls it.

`nvlm_deploy.Engine.open(bundle, runtime="native")` is the way in.
"""
