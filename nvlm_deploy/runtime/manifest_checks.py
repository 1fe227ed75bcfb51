"""A bundle's manifest held against the bundle's other files, its opened graphs, and this machine.

What the manifest says twice must agree with itself, too. Every field that does not hold is named with its
value, with what was found instead, and with the command that builds the bundle again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.protocol import GraphFacts
from nvlm_deploy.config.machine import Machine
from nvlm_deploy.config.manifest import EngineManifest
from nvlm_deploy.config.mismatch import ABSENT, Mismatch, differences, expect
from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import UnsuitableError

# Their engines hold machine code: they run where they were built for, and nowhere else.
COMPILED_BACKENDS = ("tensorrt", "tensorrt_llm", "tensorrt_rtx")
_CONFIG = "config.json gives"
_CROSS = "config.json gives cross-attention in the layers"
_HERE = "this machine has"


def config_mismatches(manifest: EngineManifest, config: NvlmConfig) -> list[Mismatch]:
    """Fields that config.json contradicts."""
    language = config.language
    top = {"variant": config.variant}
    tiler = {
        "tile_size": config.tile_size,
        "min_tiles": config.min_tiles,
        "max_tiles": config.max_tiles,
        "use_thumbnail": config.use_thumbnail,
        "visual_tokens_per_tile": config.visual_tokens_per_tile,
    }
    vision = {
        "tile_size": config.tile_size,
        "visual_tokens_per_tile": config.visual_tokens_per_tile,
        "hidden_size": language.hidden_size,
    }
    llm = {"hidden_size": language.hidden_size, "vocab_size": language.vocab_size}
    found = [
        *expect({"variant": manifest.variant}, top, _CONFIG, ""),
        *expect({name: getattr(manifest.tiler, name) for name in tiler}, tiler, _CONFIG, "tiler."),
        *expect(
            {"thumbnail_tag": manifest.prompt.thumbnail_tag},
            {"thumbnail_tag": config.thumbnail_tag},
            _CONFIG,
            "prompt.",
        ),
        *_expect_known(manifest.vision, vision, _CONFIG, "vision."),
        *_expect_known(manifest.llm, llm, _CONFIG, "llm."),
        *_expect_known({"backend": manifest.backend}, _known_backend(manifest), "target.backend is", ""),
        *_expect_known(manifest.llm, {"context_length": manifest.context}, "context is", "llm."),
    ]
    if ("tiles" in manifest.llm) != (config.cross_attention is not None):
        layers = None if config.cross_attention is None else config.cross_attention.layers
        found.append(Mismatch("llm.tiles", manifest.llm.get("tiles", ABSENT), _CROSS, layers))
    if manifest.context > language.max_position_embeddings:
        limit = language.max_position_embeddings
        found.append(Mismatch("context", manifest.context, "config.json allows no more than", limit))
    return found


def file_mismatches(manifest: EngineManifest) -> list[Mismatch]:
    """Models and their data that are no files of the bundle."""
    paths = {entry.path for entry in manifest.files}
    named = [
        (f"{part}.{key}", section[key])
        for part in ("vision", "llm", *(["llm.tiles"] if "tiles" in manifest.llm else []))
        for section in [_section(manifest, part)]
        for key in ("model", "data")
        if key in section
    ]
    return [
        Mismatch(field, path, "the bundle's files are", sorted(paths))
        for field, path in named
        if path not in paths
    ]


def graph_mismatches(manifest: EngineManifest, part: str, facts: GraphFacts) -> list[Mismatch]:
    """Fields that an opened graph contradicts; `part` is `vision`, `llm` or `llm.tiles`."""
    section = _section(manifest, part)
    witness = f"{section.get('model', part)} has"
    found = expect(section, _described(section, facts), witness, f"{part}.")
    if facts.context_length is not None:
        found += expect({"context": manifest.context}, {"context": facts.context_length}, witness, "")
    if facts.record is not None:
        made = f"{section.get('model', part)} was made with"
        found += differences(manifest.record(), facts.record, made)
    return found


def require_gpu(bundle: Path, manifest: EngineManifest, machine: Machine) -> None:
    """Refuse to open a compiled engine on a machine without a GPU, which no rebuild would change.

    Raises:
        UnsuitableError: names what it was compiled for.
    """
    if machine.sm is None:
        name = manifest.target.get("name")
        raise UnsuitableError(
            f"{bundle} was compiled by {manifest.backend} for the GPU of {name}, and this machine has none",
            hint="open it on that device; nvlm-build doctor says what a machine has",
        )


def machine_mismatches(manifest: EngineManifest, machine: Machine) -> list[Mismatch]:
    """Fields of a compiled engine that this machine contradicts; none for graphs, which run anywhere."""
    if manifest.backend not in COMPILED_BACKENDS:
        return []
    target, tools = manifest.target, manifest.tool_versions
    built_for = {"architecture": target.get("architecture"), "sm": target.get("sm")}
    found = expect(built_for, {"architecture": machine.architecture, "sm": machine.sm}, _HERE, "target.")
    for name in COMPILED_BACKENDS:
        mine = machine.versions.get(name)
        if name in tools and (mine is None or _release(mine, 3) != _release(tools[name], 3)):
            found.append(Mismatch(f"tool_versions.{name}", tools[name], _HERE, mine or ABSENT))
    if "cuda" in tools and (machine.cuda is None or _release(machine.cuda, 1) < _release(tools["cuda"], 1)):
        found.append(
            Mismatch(
                "tool_versions.cuda", tools["cuda"], "this machine's driver runs", machine.cuda or ABSENT
            )
        )
    if "driver" in tools and (
        machine.driver is None or _release(machine.driver, 2) < _release(tools["driver"], 2)
    ):
        found.append(Mismatch("tool_versions.driver", tools["driver"], _HERE, machine.driver or ABSENT))
    return found


def _section(manifest: EngineManifest, part: str) -> Mapping[str, Any]:
    """What the manifest says of a graph."""
    first, _, inner = part.partition(".")
    section: Mapping[str, Any] = getattr(manifest, first)
    return section[inner] if inner else section


def _described(section: Mapping[str, Any], facts: GraphFacts) -> dict[str, Any]:
    """What a section should say of a graph's inputs and outputs, in the section's own form."""
    cache = section.get("kv_cache")
    if cache is None:
        return {"inputs": facts.inputs, "outputs": facts.outputs}
    past = sorted(name for name in facts.inputs if name.startswith("past_key."))
    described = facts.inputs[past[0]] if past else {"dtype": "none", "shape": []}
    # Some runtimes update the cache in place; others are given the new keys and values alone.
    written = "new" if any(name.startswith("new_key.") for name in facts.outputs) else "present"
    names = ("past_key.", "past_value.", f"{written}_key.", f"{written}_value.")
    return {
        "inputs": {name: value for name, value in facts.inputs.items() if not name.startswith(names)},
        "outputs": {name: value for name, value in facts.outputs.items() if not name.startswith(names)},
        "kv_cache": {
            "past": [f"{name}{{layer}}" for name in names[:2]],
            written: [f"{name}{{layer}}" for name in names[2:]],
            "layers": len(past),
            **described,
            "in_place": written == "present",
        },
    }


def _known_backend(manifest: EngineManifest) -> dict[str, Any]:
    return {"backend": manifest.target["backend"]} if "backend" in manifest.target else {}


def _expect_known(
    section: Mapping[str, Any], wanted: Mapping[str, Any], witness: str, field: str
) -> list[Mismatch]:
    """Compare fields that a backend may leave out."""
    there = {name: value for name, value in wanted.items() if name in section}
    return expect(section, there, witness, field)


def _release(version: str, parts: int) -> tuple[int, ...]:
    """The first numbers of a version: (10, 14, 1) of `10.14.1.48.post1`."""
    numbers = [int(part) for part in version.split("+")[0].split(".") if part.isdigit()]
    return tuple(numbers[:parts])
