"""The page for people in a build kit: what it is, and the one command that compiles it."""

from __future__ import annotations

from nvlm_deploy.config.kit import BuildKit
from nvlm_deploy.config.target import capability

_PAGES = {"aarch64": "jetson-orin.md", "x86_64": "datacenter.md"}
_THOR_SM = 110


def target_page(name: str, architecture: str, sm: int) -> str:
    """The page in docs/targets/ for a device."""
    if sm == _THOR_SM:
        return "docs/targets/jetson-thor.md"
    if name.startswith(("rtx-", "dgx-spark")):
        return "docs/targets/workstation.md"
    return f"docs/targets/{_PAGES[architecture]}"


def kit_page(kit: BuildKit, builder: str | None = None) -> str:
    """Return the text of `README.md`. builder: the command line of TensorRT-LLM's own builder."""
    bundle, target = kit.bundle, kit.bundle.target
    name, sm = str(target["name"]), int(target["sm"])
    versions = ", ".join(f"{part} {target['versions'].get(part, '?')}" for part in _makers(kit))
    ranks = _ranks(kit)
    run = "nvlm-build run BUNDLE --image photo.jpg --prompt 'What is this?'"
    launch = f"mpirun -n {ranks} {run}" if ranks > 1 else run
    verify = "The kit has no probes: verify the bundle against the checkpoint, where you have it."
    if kit.probes:
        verify = (
            "At the end the engine answers the questions in `probes/`; the exit code is 4 if it differs too "
            "much."
        )
    elif builder is not None:
        verify = "The kit has no probes: nothing asks them yet."
    return f"""# Build kit: {bundle.variant}, {bundle.recipe["name"]}, for {name}

Everything that an engine is compiled from, but the compilers. Copy this folder to the device
({target["description"]}; {target["architecture"]}, compute capability {capability(sm)};
{versions}) and run there:

    nvlm-build compile KIT -o BUNDLE

`nvlm-build compile KIT -o BUNDLE --dry-run` prints what would be built and what the device lacks. A compile
that was stopped goes on behind its last finished stage; `--max-build-memory 48GB` ends compilers that take
more. {verify}

{_use(builder, launch)}

| | |
|---|---|
| context | {bundle.context:,} tokens of prompt and answer |
| requests in flight | {target["limits"]["max_batch"]} |
| tiles of an image | {bundle.tiler.max_tiles}, and the thumbnail |
| ranks of the language model | {ranks} |
| checkpoint's fingerprint | {bundle.checkpoint_fingerprint[:16]} |

Container command lines and versions: `{target_page(name, target["architecture"], sm)}` of nvlm-deploy
{bundle.project_version}. Every file's SHA-256 is in `kit.json`, and is checked before anything is compiled.
"""


def _use(builder: str | None, launch: str) -> str:
    """What is done with the bundle. A builder is there where this runtime cannot drive the engine."""
    if builder is None:
        return f"    {launch}"
    return f"""**Not yet run on a GPU.** TensorRT-LLM's own builder makes the language model's engine here:

    {builder}

This release's runtime does not hand tiles to it yet; `docs/tensorrt-llm.md` says what a request has."""


def _makers(kit: BuildKit) -> list[str]:
    return sorted({part.maker for part in kit.parts})


def _ranks(kit: BuildKit) -> int:
    section = kit.part("llm").section
    return int(section.get("tp", 1)) * int(section.get("pp", 1))
