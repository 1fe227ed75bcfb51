"""`nvlm-build run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from nvlm_deploy.runtime.result import Result


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The parsed command line."""

    bundle: Path
    prompt: str
    images: tuple[str, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    top_logits: int
    device: str
    threads: int | None
    memory: Literal["fast", "mapped"]
    require_verified: bool
    runtime: Literal["python", "native"]
    stream: bool
    as_json: bool


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", metavar="TEXT", required=True, help="<image> marks an image's place in it.")
@click.option("--image", "images", metavar="FILE", multiple=True, help="An image; may be given again.")
@click.option("--max-new-tokens", metavar="N", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--stop", metavar="TEXT", multiple=True, help="End the answer before this text.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: always the best token.")
@click.option("--top-k", metavar="K", type=int, default=0, help="Sample from the K best tokens.")
@click.option("--top-p", metavar="P", type=float, default=1.0, help="Sample from the best tokens of mass P.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--top-logits", metavar="K", type=click.IntRange(min=0), default=0, help="Show K first tokens.")
@click.option(
    "--device",
    metavar="DEVICE",
    default="cpu",
    show_default=True,
    help="cpu, cuda, or cuda:N for one of several.",
)
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="Default: all cores.")
@click.option(
    "--memory",
    type=click.Choice(["fast", "mapped"]),
    default="fast",
    show_default=True,
    help="mapped: leave the weights in the file, for models larger than memory.",
)
@click.option(
    "--require-verified", is_flag=True, help="Refuse an engine that nvlm-build verify has not passed."
)
@click.option(
    "--runtime",
    type=click.Choice(["python", "native"]),
    default="python",
    show_default=True,
    help="native: libnvlm, with the same answers.",
)
@click.option("--stream", is_flag=True, help="Print the answer while it is made.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def run(**options: Any) -> None:
    """Answer a prompt, about images if there are any.

    The answer goes to stdout; the times of the stages go to stderr.
    """
    from nvlm_deploy.errors import UsageError

    parsed = RunOptions(**options)
    if parsed.stream and parsed.as_json:
        raise UsageError("--stream and --json exclude each other", hint="the JSON has the whole answer")
    result = _answer(parsed)
    if parsed.as_json:
        from nvlm_deploy.cli.output import print_json

        print_json(result.to_dict())
    else:
        click.echo("" if parsed.stream else result.text)
        _print_facts(result)


def _answer(options: RunOptions) -> Result:
    from nvlm_deploy.runtime.engine import Engine

    settings: dict[str, Any] = {
        "max_new_tokens": options.max_new_tokens,
        "stop": options.stop,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
        "top_logits": options.top_logits,
    }
    engine = Engine.open(
        options.bundle,
        device=options.device,
        threads=options.threads,
        memory=options.memory,
        require_verified=options.require_verified,
        runtime=options.runtime,
    )
    if not options.stream:
        result: Result = engine.generate(options.prompt, options.images, **settings)
        return result
    stream = engine.generate(options.prompt, options.images, stream=True, **settings)
    for piece in stream:
        click.echo(piece, nl=False)
    return stream.result


def _print_facts(result: Result) -> None:
    for token, logit in result.first_token_top:
        click.echo(f"first token {token}: logit {logit:.4f}", err=True)
    times = ", ".join(f"{stage} {milliseconds:.1f} ms" for stage, milliseconds in result.timings_ms.items())
    click.echo(times, err=True)
