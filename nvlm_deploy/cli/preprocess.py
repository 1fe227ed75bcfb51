"""`nvlm-build preprocess`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nvlm_deploy.preprocess import Prompt, TiledImage


@click.command()
@click.argument("source", metavar="CHECKPOINT_OR_BUNDLE", type=click.Path(path_type=Path))
@click.option("--image", "images", metavar="FILE", multiple=True, help="An image; may be given again.")
@click.option("--prompt", metavar="TEXT", help="A prompt; <image> marks an image's place in it.")
@click.option("--mode", type=click.Choice(["hf", "megatron"]), default="hf", help="Tokenization mode.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def preprocess(source: Path, images: tuple[str, ...], prompt: str | None, mode: str, as_json: bool) -> None:
    """Show the tiles and token ids of an input, as the model gets them.

    For each image: its grid (columns x rows), its tiles and the CRC-32 of each tile's RGB bytes. With
    --prompt, the token ids of the whole prompt, too.
    """
    from nvlm_deploy.cli.output import print_json
    from nvlm_deploy.config.model import NvlmConfig
    from nvlm_deploy.errors import UsageError
    from nvlm_deploy.preprocess import PromptBuilder, Tokenizer, preprocess_images

    if not images and prompt is None:
        raise UsageError("there is nothing to show", hint="give --image FILE, --prompt TEXT, or both")
    config = NvlmConfig.from_directory(source)
    tiled = preprocess_images(images, config)
    built = None
    if prompt is not None:
        builder = PromptBuilder(Tokenizer.from_directory(source), config, mode)  # type: ignore[arg-type]
        built = builder.build(prompt, [len(image) for image in tiled])
    if as_json:
        print_json(_as_dict(images, tiled, built))
    else:
        _print_text(images, tiled, built)


def _as_dict(files: tuple[str, ...], tiled: list[TiledImage], built: Prompt | None) -> dict[str, Any]:
    images = [{"file": file, **image.report()} for file, image in zip(files, tiled, strict=True)]
    if built is None:
        return {"images": images}
    return {
        "images": images,
        "input_ids": built.input_ids.tolist(),
        "visual_positions": built.visual_positions.tolist(),
        "text": built.text,
    }


def _print_text(files: tuple[str, ...], tiled: list[TiledImage], built: Prompt | None) -> None:
    for file, image in zip(files, tiled, strict=True):
        columns, rows = image.grid
        click.echo(f"{file}: grid {columns} x {rows}, {len(image)} tiles")
        click.echo("  crc32 " + " ".join(f"{value:08x}" for value in image.crc32))
    if built is not None:
        click.echo(f"{len(built)} tokens, {len(built.visual_positions)} of them visual")
        click.echo("  ids " + " ".join(str(token) for token in built.input_ids))
