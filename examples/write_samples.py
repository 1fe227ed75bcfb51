"""Write the first held-out pages of an example: python examples/write_samples.py examples/nvlm-d-tiny."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nvlm_deploy.synthetic.documents import samples

COUNT = 24


def main(directory: Path) -> None:
    """Draw the pages and list them with question and answer in `samples.jsonl`."""
    directory.mkdir(exist_ok=True)
    with (directory / "samples.jsonl").open("w", encoding="utf-8") as file:
        for index, sample in enumerate(samples("heldout", COUNT)):
            name = f"{index:02d}-{sample.kind}.png"
            sample.image.save(directory / name, optimize=True)
            row = {"image": name, "question": sample.question, "answer": sample.answer}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "samples")
