"""Build engines with TensorRT, on the device that they are for."""

from nvlm_deploy.backends.tensorrt.engine import PlanMaker

_MAKER = PlanMaker("tensorrt", package="tensorrt")

adapt = _MAKER.adapt
check = _MAKER.check
files = _MAKER.files
disk_bytes = _MAKER.disk_bytes
tools = _MAKER.tools
build_engine = _MAKER.build_engine
