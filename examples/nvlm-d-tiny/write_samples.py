"""Write the first held-out pages to `samples/`: python examples/nvlm-d-tiny/write_samples.py."""

from __future__ import annotations

import json
from pathlib import Path

from nvlm_deploy.synthetic.documents import samples

SAMPLES = Path(__file__).parent / "samples"
COUNT = 24


def main() -> None:
    """Draw the pages and list them with question and answer in `samples.jsonl`."""
    SAMPLES.mkdir(exist_ok=True)
    with (SAMPLES / "samples.jsonl").open("w", encoding="utf-8") as file:
        for index, sample in enumerate(samples("heldout", COUNT)):
            name = f"{index:02d}-{sample.kind}.png"
            sample.image.save(SAMPLES / name, optimize=True)
            row = {"image": name, "question": sample.question, "answer": sample.answer}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
