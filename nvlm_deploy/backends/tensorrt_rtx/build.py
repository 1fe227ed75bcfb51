"""Build engines with TensorRT-RTX, ahead of time, on any machine."""

from nvlm_deploy.backends.tensorrt.engine import PlanMaker

_MAKER = PlanMaker("tensorrt_rtx", package="tensorrt-rtx-cu13")

adapt = _MAKER.adapt
check = _MAKER.check
files = _MAKER.files
disk_bytes = _MAKER.disk_bytes
tools = _MAKER.tools
build_engine = _MAKER.build_engine
