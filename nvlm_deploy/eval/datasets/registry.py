"""All formats by name."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.errors import NvlmError, UsageError, did_you_mean
from nvlm_deploy.eval.datasets import documents, mathvista, mmmu, plain, text, vqa
from nvlm_deploy.eval.datasets.example import DatasetFiles, DatasetFormat, Example

_ALL = (
    DatasetFormat("jsonl", "lines {image(s), question, references, ...}", None, plain.read_plain),
    DatasetFormat("vqav2", "questions JSON, --annotations JSON, COCO images", "vqa", vqa.read_vqav2),
    DatasetFormat("textvqa", "JSON, images IMAGE_ID.jpg", "vqa", vqa.read_textvqa),
    DatasetFormat("docvqa", "JSON of DocVQA or InfographicVQA", "anls", documents.read_docvqa),
    DatasetFormat("chartqa", "JSON list {imgname, query, label}", "relaxed", documents.read_chartqa),
    DatasetFormat("ocrbench", "OCRBench.json", "ocrbench", documents.read_ocrbench),
    DatasetFormat("ai2d", "JSONL {image, question, answer}", "exact", documents.read_ai2d),
    DatasetFormat("realworldqa", "JSON list with choices or answers", "exact", documents.read_realworldqa),
    DatasetFormat("mmmu", "Parquet files or folder, or JSONL", "mmmu", mmmu.read_mmmu),
    DatasetFormat("mathvista", "testmini.json", "mathvista", mathvista.read_mathvista),
    DatasetFormat("gsm8k", "test.jsonl", "gsm8k", text.read_gsm8k),
    DatasetFormat("mmlu", "SUBJECT_test.csv, or the folder of them", "mmlu", text.read_mmlu),
)
FORMATS = {each.name: each for each in _ALL}


def find_format(name: str) -> DatasetFormat:
    """Return a format by its name.

    Raises:
        UsageError: there is none; suggests the nearest.
    """
    if name not in FORMATS:
        raise UsageError(f"there is no data format '{name}'", hint=did_you_mean(name, FORMATS))
    return FORMATS[name]


def read_dataset(kind: DatasetFormat, files: DatasetFiles) -> Sequence[Example]:
    """Read a data set, in the order of its files.

    Raises:
        NvlmError: a file or a record is not in order, there are none, or two have the same id.
    """
    examples = kind.read(files)
    if not examples:
        raise NvlmError(f"{files.data} has no records")
    seen = set()
    for example in examples:
        if example.id in seen:
            raise NvlmError(f"{files.data} has the id '{example.id}' twice")
        seen.add(example.id)
    return examples
