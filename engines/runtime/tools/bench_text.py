"""Encoding speed and loading time of the native tokenizer beside the `tokenizers` library, one thread each.

python engines/runtime/tools/bench_text.py build/native-text/nvlm_text_lines tokenizer.json [TEXT]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers

ROUNDS = 5


def default_text() -> str:
    """This repository's documentation, repeated to two megabytes."""
    docs = Path(__file__).resolve().parents[3] / "docs"
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md")))
    return text * (2_000_000 // len(text) + 1)


def native(program: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The program's answers."""
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(program: str, tokenizer_file: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text(text, encoding="utf-8")
        load = {"load": tokenizer_file}
        answers = native(program, [load] * ROUNDS + [{"time": str(path)}] * ROUNDS)
    ours = {
        "load": min(answer["seconds"] for answer in answers[:ROUNDS]),
        "encode": min(answer["seconds"] for answer in answers[ROUNDS:]),
    }
    theirs = {"load": float("inf"), "encode": float("inf")}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        library = tokenizers.Tokenizer.from_file(tokenizer_file)
        theirs["load"] = min(theirs["load"], time.perf_counter() - start)
        start = time.perf_counter()
        count = len(library.encode(text, add_special_tokens=False).ids)
        theirs["encode"] = min(theirs["encode"], time.perf_counter() - start)
    size = len(text.encode())
    assert count == answers[-1]["ids"], "the two do not agree"
    for name, found in (("native", ours), ("tokenizers", theirs)):
        speed = size / found["encode"] / 1e6
        sys.stdout.write(f"{name:>12}: load {found['load'] * 1e3:7.1f} ms, encode {speed:6.2f} MB/s\n")
    sys.stdout.write(f"{size / 1e6:.1f} MB of text, {count:,} tokens, best of {ROUNDS}\n")


if __name__ == "__main__":
    chosen = Path(sys.argv[3]).read_text(encoding="utf-8") if len(sys.argv) > 3 else default_text()
    main(sys.argv[1], sys.argv[2], chosen)
