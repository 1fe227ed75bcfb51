"""The programs and their verbs."""

from __future__ import annotations

from collections.abc import Sequence

from nvlm_deploy.cli.frame import LazyGroup, Verb, run_process, run_program

BUILD = LazyGroup(
    "nvlm-build",
    {
        "engine": Verb("nvlm_deploy.cli.engine", "engine", "Build the engine bundle of a checkpoint."),
        "plan": Verb(
            "nvlm_deploy.cli.plan",
            "plan",
            "Predict size, memory and speed of an engine, and whether it fits.",
        ),
        "compile": Verb(
            "nvlm_deploy.cli.compile",
            "compile_command",
            "Compile a build kit into an engine bundle, on its device.",
        ),
        "quantize": Verb(
            "nvlm_deploy.cli.quantize",
            "quantize",
            "Quantize a checkpoint layer by layer, calibrated on images.",
        ),
        "export": Verb(
            "nvlm_deploy.cli.export",
            "export",
            "Write a checkpoint in the layout of another program, or check one.",
        ),
        "verify": Verb(
            "nvlm_deploy.cli.verify",
            "verify",
            "Hold an engine against the checkpoint that it was built from.",
        ),
        "run": Verb("nvlm_deploy.cli.run", "run", "Answer a prompt, about images if there are any."),
        "preprocess": Verb(
            "nvlm_deploy.cli.preprocess",
            "preprocess",
            "Show the tiles and token ids of an input, as the model gets them.",
        ),
        "inspect": Verb(
            "nvlm_deploy.cli.inspect", "inspect", "Describe a checkpoint, an engine bundle or a config.json."
        ),
        "recipes": Verb("nvlm_deploy.cli.recipes", "recipes", "List the recipes, or show one."),
        "targets": Verb("nvlm_deploy.cli.targets", "targets", "List the targets, or show one."),
        "doctor": Verb(
            "nvlm_deploy.cli.doctor",
            "doctor",
            "Look at this machine: drivers, engine makers, versions, memory, disk.",
        ),
        "calibration": Verb(
            "nvlm_deploy.cli.calibration", "calibration", "List the calibration sets, or show one."
        ),
        "calibrate": Verb(
            "nvlm_deploy.cli.calibrate",
            "calibrate",
            "Read a calibration set as a checkpoint's model sees it.",
        ),
        "sensitivity": Verb(
            "nvlm_deploy.cli.sensitivity",
            "sensitivity",
            "Measure what a checkpoint loses when one layer is quantized.",
        ),
        "auto": Verb(
            "nvlm_deploy.cli.auto",
            "auto",
            "Write the recipe that loses least within a size, layer by layer.",
        ),
        "convert": Verb(
            "nvlm_deploy.cli.convert",
            "convert",
            "Start an NVLM-D, X or H from a language model and a vision tower.",
        ),
        "import-megatron": Verb(
            "nvlm_deploy.cli.import_megatron",
            "import_megatron",
            "Convert a Megatron-core checkpoint to the released layout.",
        ),
    },
    "Quantize NVLM checkpoints, build engines for a named device, and run them.\n\n"
    "Data goes to stdout; progress, notes and errors go to stderr.",
)

BENCH = LazyGroup(
    "nvlm-bench",
    {
        "shapes": Verb(
            "nvlm_deploy.cli.bench",
            "shapes",
            "Measure engines against transformers on random weights of a named shape.",
        ),
        "latency": Verb(
            "nvlm_deploy.cli.bench_latency",
            "latency",
            "Time an engine, stage by stage, beside the machine's limits.",
        ),
        "compare": Verb(
            "nvlm_deploy.cli.bench_latency",
            "compare",
            "Compare two reports of latency; exit 4 if the second is slower.",
        ),
        "limits": Verb(
            "nvlm_deploy.cli.bench_latency",
            "limits",
            "Measure what this machine can do at most.",
        ),
        "plans": Verb(
            "nvlm_deploy.cli.bench_plans",
            "plans",
            "Compile TensorRT-RTX plans of a named shape: sizes and build times.",
        ),
        "variants": Verb(
            "nvlm_deploy.cli.bench_variants",
            "variants",
            "Measure NVLM-D, X and H of equal width side by side.",
        ),
    },
    "Measure the speed of engines.",
)

EVAL = LazyGroup(
    "nvlm-eval",
    {
        "documents": Verb(
            "nvlm_deploy.cli.evaluate", "documents", "Exact match on held-out generated documents."
        ),
        "recipes": Verb(
            "nvlm_deploy.cli.evaluate_recipes",
            "recipes",
            "Compare recipes on held-out generated documents.",
        ),
        "run": Verb("nvlm_deploy.cli.evaluate_run", "run", "Answer a benchmark's questions and score them."),
        "score": Verb("nvlm_deploy.cli.score", "score", "Score saved predictions."),
        "metrics": Verb(
            "nvlm_deploy.cli.score", "metrics", "List the metrics, with the fields that they read."
        ),
        "formats": Verb(
            "nvlm_deploy.cli.evaluate_run", "formats", "List the formats of data sets that can be read."
        ),
    },
    "Measure how right an engine's answers are.",
)

TRAIN = LazyGroup(
    "nvlm-train",
    {
        "run": Verb("nvlm_deploy.cli.train", "run", "Train a checkpoint, or go on with a run."),
        "show": Verb("nvlm_deploy.cli.train", "show", "Show one sample as it is trained on."),
        "merge": Verb("nvlm_deploy.cli.train", "merge", "Add adapters to their checkpoint."),
        "export-bundle": Verb(
            "nvlm_deploy.cli.train_bundle",
            "export_bundle",
            "Put a trained checkpoint, a calibration set and probes of its data into one directory.",
        ),
        "configs": Verb("nvlm_deploy.cli.train", "configs", "List the training configs, or show one."),
        "bench": Verb(
            "nvlm_deploy.cli.train_bench",
            "bench",
            "Measure training beside transformers' Trainer, and packed beside unpacked.",
        ),
    },
    "Train NVLM checkpoints: fine-tuning, adapters, the paper's two stages.",
)

PROGRAMS = (BUILD, BENCH, EVAL, TRAIN)


def run(arguments: Sequence[str]) -> int:
    """Run one command line of `nvlm-build` in this process; return its exit code."""
    return run_program(BUILD, arguments)


def main() -> None:
    """Entry point of `nvlm-build`."""
    run_process(BUILD)


def bench_main() -> None:
    """Entry point of `nvlm-bench`."""
    run_process(BENCH)


def eval_main() -> None:
    """Entry point of `nvlm-eval`."""
    run_process(EVAL)


def train_main() -> None:
    """Entry point of `nvlm-train`."""
    run_process(TRAIN)
