"""The runtime tiles and tokenizes on machines that have numpy, Pillow and tokenizers, and no more."""

from __future__ import annotations

import subprocess
import sys


def test_preprocessing_imports_no_heavy_package() -> None:
    code = (
        "import sys, nvlm_deploy.preprocess; "
        "heavy = ('torch', 'transformers', 'onnxruntime', 'onnx', 'pydantic', 'yaml'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""
