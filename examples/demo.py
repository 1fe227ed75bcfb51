"""Ask an engine about the first image of the example's held-out samples: the second half of `make demo`.

Runs the same commands that a user would type, and shows them.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

SAMPLES = Path(__file__).parent / "nvlm-d-tiny" / "samples" / "samples.jsonl"


def main(bundle: str) -> None:
    with SAMPLES.open(encoding="utf-8") as lines:
        sample = json.loads(next(lines))
    image = os.path.relpath(SAMPLES.parent / sample["image"])
    show("inspect", bundle)
    show("run", bundle, "--image", image, "--prompt", sample["question"])
    print(f"\nThe right answer: {sample['answer']}")


def show(*arguments: str) -> None:
    """Print a command line, then run it."""
    print(f"\n$ nvlm-build {shlex.join(arguments)}", flush=True)
    subprocess.run([Path(sys.executable).with_name("nvlm-build"), *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
