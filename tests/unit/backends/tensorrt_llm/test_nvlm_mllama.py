"""The model class for TensorRT-LLM's engine builder, without TensorRT-LLM.

Every name that it takes from TensorRT-LLM, and every argument, is one that `tensorrt_llm_api.json` records of
its sources. Its weights are those of the files that are written. Its computation, with PyTorch in the place
of TensorRT-LLM's layers, gives the logits of the reference.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from nvlm_deploy.backends.tensorrt_llm.adapter import CROSS_ARCHITECTURE
from nvlm_deploy.backends.tensorrt_llm.encoder_inputs import TileFeatures
from nvlm_deploy.backends.tensorrt_llm.prompt_table import prompt_ids
from nvlm_deploy.export.tensorrt_llm.cross_config import ARCHITECTURE
from nvlm_deploy.models import CrossTiles, Nvlm, load_model
from nvlm_deploy.pipeline.export import ExportRequest, plan_export
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.progress import no_progress
from nvlm_deploy.synthetic.random_checkpoint import write_random_checkpoint
from nvlm_deploy.synthetic.shapes import ModelShape, cross_style_config

from . import torch_layers
from .torch_layers import from_checkpoint
from .torch_ops import Tensor

HERE = Path(__file__).parent
CLASS_FILE = Path(torch_layers.__file__).parents[4] / "nvlm_deploy/backends/tensorrt_llm/nvlm_mllama.py"
API: dict[str, dict[str, Any]] = json.loads((HERE / "tensorrt_llm_api.json").read_text())["symbols"]
SHAPE = ModelShape(
    tile_size=56,
    vision_hidden=16,
    vision_intermediate=16,
    vision_layers=1,
    vision_heads=1,
    hidden=64,
    intermediate=96,
    layers=3,
    heads=8,
    kv_heads=2,
    vocab_size=321,
    max_positions=512,
)
KINDS: dict[str, tuple[Literal["X", "H"], dict[str, object]]] = {
    "X": ("X", {}),
    "X otherwise": (
        "X",
        {"placement": "before_layer", "kv_norm": "none", "gated_mlp": True, "attention_bias": True},
    ),
    "H": ("H", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "H otherwise": ("H", {"gated_mlp": True, "attention_bias": True, "bind_tags": False}),
}
TILES = (3, 1)


@pytest.fixture(scope="module", params=list(KINDS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant, options = KINDS[request.param]
    path = tmp_path_factory.mktemp("mllama") / "checkpoint"
    write_random_checkpoint(cross_style_config(SHAPE, variant, [0, 2], **options), path)
    return path


@pytest.fixture
def class_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file as `--model_cls_file` loads it, before the checkpoint's config is read."""
    torch_layers.install(monkeypatch)
    loader = SourceFileLoader("models_of_a_test", str(CLASS_FILE))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    yield module
    torch_layers.MODEL_MAP.clear()


def export(directory: Path, output: Path, tp: int = 1) -> dict[str, Any]:
    options = {"tp": tp, "dtype": "float16"}
    plan_export("trtllm", ExportRequest(directory, output, options)).run(no_progress)
    config: dict[str, Any] = json.loads((output / "config.json").read_text())
    return config


def halved(directory: Path) -> Nvlm:
    """The reference with weights as the checkpoint has them; gates stay as they are."""
    model = load_model(directory)
    for name, parameter in model.language.named_parameters():
        if not name.endswith("gate"):
            parameter.data = parameter.data.half().float()
    return model


def run_engine(
    engine: Any, ids: list[int], made: Any, skip: bool, table: torch.Tensor | None
) -> torch.Tensor:
    """Logits [S, vocabulary] of what an engine would be given."""
    given = None if table is None else Tensor(table)
    logits: torch.Tensor = engine(
        decoder_input_ids=Tensor(torch.tensor(ids)),
        encoder_output=Tensor(torch.from_numpy(made.features)),
        use_cache=True,
        attention_mask_params=SimpleNamespace(
            cross_attention_mask=Tensor(torch.from_numpy(made.mask)), cross_attention_packed_mask=None
        ),
        prompt_embedding_table=given,
        prompt_tasks=given and Tensor(torch.zeros(len(ids))),
        prompt_vocab_size=given and Tensor(torch.tensor([0])),
        skip_cross_attn_blocks=Tensor(torch.tensor([skip])),
    ).data
    return logits[:, : SHAPE.vocab_size]


@torch.inference_mode()
def test_it_computes_the_logits_of_the_reference(directory: Path, class_file: Any, tmp_path: Path) -> None:
    config = export(directory, tmp_path / "ranks")
    engine, model = from_checkpoint(tmp_path / "ranks", config, 0), halved(directory)
    builder = PromptBuilder(Tokenizer.from_directory(directory), model.config)
    cross, width = model.config.cross_attention, model.config.language.hidden_size
    assert cross is not None
    rows = model.language.embed_tokens.weight.numpy()
    features = TileFeatures(cross, model.config.language.norm_eps, lambda ids: rows[ids])
    prompt = builder.build("Before <image> between <image> behind", TILES)
    shape = (sum(TILES), model.config.visual_tokens_per_tile, width)
    visual_TND = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert prompt.cross is not None

    places = prompt.visual_positions
    ids_1S = torch.from_numpy(prompt.input_ids)[None]
    mask_1S = torch.zeros_like(ids_1S, dtype=torch.bool)
    mask_1S[0, torch.from_numpy(places)] = True
    hidden = model.hidden_states(ids_1S, visual_TND, mask_1S, tiles=CrossTiles.of([prompt]))
    theirs = model.language.logits(hidden)[0]
    made = features.inputs(prompt.cross, visual_TND.numpy(), width)
    table = visual_TND[prompt.cross.sequence_tiles].flatten(0, 1) if len(places) else None
    ids = prompt_ids(prompt.input_ids, places, model.config.language.vocab_size)
    ours = run_engine(engine, ids, made, made.skip, table)
    assert theirs.std() > 0.05
    assert (ours - theirs).abs().max() <= 1e-4

    # Text alone, in a step of its own and in one beside images: the bare language model.
    text = builder.build("No image.")
    assert text.cross is not None
    bare = model.language.logits(model.hidden_states(torch.from_numpy(text.input_ids)[None]))[0]
    nothing = features.inputs(text.cross, None, width)
    alone, beside = (
        run_engine(engine, text.input_ids.tolist(), nothing, skip, None) for skip in (nothing.skip, False)
    )
    assert torch.equal(alone, beside)
    assert (alone - bare).abs().max() <= 1e-4


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_its_weights_are_those_of_every_rank(
    tp: int, directory: Path, class_file: Any, tmp_path: Path
) -> None:
    """Names, shapes and dtypes: the model takes no others."""
    config = export(directory, tmp_path / "ranks", tp)
    for rank in range(tp):
        engine = from_checkpoint(tmp_path / "ranks", config, rank)
        settings = engine.config
        lists = ("num_kv_heads_per_layer", "num_kv_heads_per_cross_attn_layer", "embed_vocab_size")
        assert {name: getattr(settings, name) for name in lists} == {name: config[name] for name in lists}
        layers = list(engine.transformer.layers)
        self_rows = [layer.attention.local_layer_idx for layer in layers]
        cross_rows = [layer.cross.attention.local_layer_idx for layer in layers if layer.attends]
        assert sorted(self_rows + cross_rows) == list(range(config["num_hidden_layers"]))
        assert cross_rows == config["cross_attention_layers"]
        heads = np.array(config["num_kv_heads_per_layer"])
        assert (heads[self_rows] > 0).all()
        assert (heads[cross_rows] == 0).all()


def test_the_builder_finds_it(class_file: Any) -> None:
    assert list(torch_layers.MODEL_MAP) == [ARCHITECTURE] == [CROSS_ARCHITECTURE]
    assert torch_layers.MODEL_MAP[ARCHITECTURE] is class_file.NvlmMllamaForCausalLM
    # Only then does the builder ask `prepare_inputs` for an encoder's sizes.
    assert "mllama" in ARCHITECTURE.lower()


def test_it_takes_nothing_from_tensorrt_llm_that_is_not_recorded() -> None:
    tree = ast.parse(CLASS_FILE.read_text())
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt_llm")
        for alias in node.names
    }
    assert set(imported.values()) == set(API)
    calls = 0
    for name, symbol in imported.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                check_call(node, API[symbol]["parameters"], name)
                calls += 1
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "CrossAttention":
            (call,) = [call for call in ast.walk(node) if is_super_init(call)]
            check_call(call, API["tensorrt_llm.layers.Attention"]["parameters"], "CrossAttention")
    assert calls > 15


def is_super_init(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"


def check_call(call: ast.AST, parameters: list[str], name: str) -> None:
    """Every argument is one of the parameters. `**` is what other calls spell out."""
    assert isinstance(call, ast.Call)
    given = [keyword.arg for keyword in call.keywords if keyword.arg]
    assert set(given) <= set(parameters), name
    assert len(call.args) <= len(parameters), name
    assert not set(given) & set(parameters[: len(call.args)]), name


def test_the_layers_of_these_tests_have_the_recorded_signatures() -> None:
    checked = 0
    for name, members in torch_layers.MODULES.items():
        for member in members:
            recorded = API[f"tensorrt_llm.{name}.{member.__name__}"].get("parameters")
            if recorded is None:
                continue
            ours = [each for each in inspect.signature(member).parameters if each != "self"]
            # In the same order, and perhaps not all of them.
            assert [each for each in recorded if each in ours] == ours, member
            checked += 1
    assert checked > 10
