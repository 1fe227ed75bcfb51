"""`python -m nvlm_deploy.train CONFIG ...`: what `nvlm-train run CONFIG ...` does, for `torchrun -m`."""

from __future__ import annotations

import sys

from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import TRAIN

if __name__ == "__main__":
    sys.exit(run_program(TRAIN, ["run", *sys.argv[1:]]))
