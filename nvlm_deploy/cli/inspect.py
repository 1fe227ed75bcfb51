"""`nvlm-build inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nvlm_deploy.checkpoint.summary import CheckpointSummary
    from nvlm_deploy.config.manifest import EngineManifest
    from nvlm_deploy.config.model import NvlmConfig


@click.command()
@click.argument("source", metavar="CHECKPOINT|BUNDLE|CONFIG", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(source: Path, as_json: bool) -> None:
    """Describe a checkpoint, an engine bundle or a config.json.

    A config.json alone gives every tensor that its checkpoint must have. A checkpoint is checked as a
    whole, without reading its weights. A bundle's files are held against its manifest.
    """
    from nvlm_deploy.config.manifest import MANIFEST_NAME
    from nvlm_deploy.errors import UsageError

    if not source.exists():
        raise UsageError(f"{source} does not exist", hint="give a checkpoint, a bundle or a config.json")
    if (source / MANIFEST_NAME).exists():
        _inspect_bundle(source, as_json)
    else:
        _inspect_model(source, as_json)


def _inspect_model(source: Path, as_json: bool) -> None:
    from nvlm_deploy.checkpoint.reader import CheckpointReader
    from nvlm_deploy.checkpoint.summary import summarize
    from nvlm_deploy.cli.output import print_json
    from nvlm_deploy.config.model import NvlmConfig

    if source.is_dir():
        reader = CheckpointReader(source)
        kind, config, summary = "checkpoint", reader.config, summarize(reader)
    else:
        config = NvlmConfig.from_file(source)
        kind, summary = "config", summarize(config)
    if as_json:
        print_json({"kind": kind, "variant": config.variant, **summary.to_dict()})
    else:
        _print_model(kind, config, summary)


def _print_model(kind: str, config: NvlmConfig, summary: CheckpointSummary) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_table

    print_table([(t.name, t.dtype, " x ".join(str(size) for size in t.shape)) for t in summary.tensors])
    click.echo()
    vision, language = config.vision, config.language
    click.echo(
        f"NVLM-{config.variant} ({kind}): tiles of {config.tile_size} px, at most {config.max_tiles} and a "
        f"thumbnail, {config.visual_tokens_per_tile} tokens each"
    )
    click.echo(f"vision: {vision.num_layers} layers x {vision.hidden_size}, {vision.num_heads} heads")
    click.echo(
        f"language: {language.architecture}, {language.num_layers} layers x {language.hidden_size}, "
        f"{language.num_heads} heads, {language.num_kv_heads} for keys and values, "
        f"{language.vocab_size:,} tokens"
    )
    click.echo()
    rows = [("part", "tensors", "parameters", "without dummy heads", "bytes")]
    for name, part in [*summary.parts.items(), ("total", summary.total)]:
        counts = (part.tensors, part.parameters, part.model_parameters)
        rows.append((name, *(f"{count:,}" for count in counts), human_bytes(part.bytes)))  # type: ignore[arg-type]
    print_table(rows, right=(1, 2, 3, 4))


def _inspect_bundle(source: Path, as_json: bool) -> None:
    from nvlm_deploy.cli.output import print_json
    from nvlm_deploy.config.manifest import EngineManifest, verify_files
    from nvlm_deploy.config.strict_json import to_json

    manifest = EngineManifest.read(source)
    verify_files(source, manifest)
    if as_json:
        print_json({"kind": "bundle", **to_json(manifest)})
    else:
        _print_bundle(source, manifest)


def _print_bundle(source: Path, manifest: EngineManifest) -> None:
    from nvlm_deploy.cli.output import human_bytes, print_sizes, print_table

    total = sum(entry.size for entry in manifest.files)
    rows = [
        ("bundle", f"{source} ({human_bytes(total)}, every digest holds)"),
        ("model", f"NVLM-{manifest.variant}, checkpoint {manifest.checkpoint_fingerprint[:16]}"),
        ("recipe", str(manifest.recipe["name"])),
        ("target", f"{manifest.target['name']} through {manifest.backend}"),
        ("context", f"{manifest.context:,} tokens"),
        ("built by", f"nvlm-deploy {manifest.project_version}"),
    ]
    print_table(rows)
    click.echo()
    print_sizes(manifest.sizes)
    click.echo()
    print_table([(entry.path, human_bytes(entry.size)) for entry in manifest.files], right=(1,))
