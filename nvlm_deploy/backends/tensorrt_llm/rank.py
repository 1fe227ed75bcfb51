"""Build one rank in a process of its own: `python -m nvlm_deploy.backends.tensorrt_llm.rank JOB`.

JOB is a JSON file; see `write_job`. The process ends with the exit code of the error that it met.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nvlm_deploy.backends.tensorrt_llm.adapter import build_rank, require_interface
from nvlm_deploy.backends.tensorrt_llm.build_config import BuildArguments
from nvlm_deploy.errors import NvlmError


def write_job(path: Path, checkpoint: Path, rank: int, arguments: BuildArguments, output: Path) -> None:
    """Write what one process is to build."""
    job = {"checkpoint": str(checkpoint), "rank": rank, "output": str(output), **arguments.to_dict()}
    path.write_text(json.dumps(job, indent=2), encoding="utf-8")


def command(job: Path) -> list[str]:
    """The command line of the process."""
    return [sys.executable, "-m", __name__, str(job)]


def main(path: Path) -> int:
    """Run a job; return the exit code."""
    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        require_interface()
        arguments = BuildArguments(job["BuildConfig"], job["PluginConfig"])
        build_rank(Path(job["checkpoint"]), job["rank"], arguments, Path(job["output"]))
    except NvlmError as error:
        sys.stderr.write(f"error: {error.message}\n\nhint: {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
