"""The native sampler chooses the very tokens that the Python runtime chooses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from nvlm_deploy.config.model import NvlmConfig
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.models import load_model
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.runtime.sampling import Sampler, Sampling, exact_exp

from .conftest import TextLines

Logits = npt.NDArray[np.float32]
PROMPTS = 100


def random_sampling(generator: random.Random) -> Sampling:
    return Sampling(
        temperature=generator.choice([0.0, 0.01, 0.7, 1.0, generator.uniform(0.1, 3)]),
        top_k=generator.choice([0, 0, 1, 5, 50, 2_000]),
        top_p=generator.choice([1.0, 1.0, 0.9, 0.5, generator.uniform(0.01, 1)]),
        seed=generator.choice([0, 1, 2**31, 2**32, 2**64 - 1, generator.getrandbits(64)]),
    )


def assert_same_tokens(native: TextLines, folder: Path, sampling: Sampling, logits: Logits) -> None:
    """`logits`, float32 [draws, vocabulary]: the draws of one request."""
    path = folder / "logits.bin"
    path.write_bytes(logits.tobytes())
    answer = native.ask(sample=request_of(sampling), logits=str(path), vocabulary=logits.shape[1])
    sampler = Sampler(sampling)
    assert answer["ids"] == [sampler.choose(row) for row in logits], sampling


def request_of(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "seed")}


@pytest.fixture(scope="module")
def example_logits(example_dir: Path) -> list[Logits]:
    """Logits of the example after each token of 100 prompts, [tokens, vocabulary] each."""
    generator = random.Random(1)
    words = ["What", "Which", "is", "the", "total", "amount", "date", "name", "first", "table", "sign", "?"]
    builder = PromptBuilder(Tokenizer.from_directory(example_dir), NvlmConfig.from_directory(example_dir))
    model = load_model(example_dir)
    found = []
    for _ in range(PROMPTS):
        question = " ".join(generator.choices(words, k=generator.randint(2, 10)))
        ids = torch.from_numpy(builder.build(question).input_ids)[None]
        with torch.no_grad():
            found.append(model(ids)[0].numpy())
    return found


def test_tokens_of_100_prompts(native: TextLines, tmp_path: Path, example_logits: list[Logits]) -> None:
    generator = random.Random(2)
    for logits in example_logits:
        assert_same_tokens(native, tmp_path, random_sampling(generator), logits)
        assert_same_tokens(native, tmp_path, Sampling(1.0, seed=generator.getrandbits(64)), logits)


def test_tokens_of_random_logits(native: TextLines, tmp_path: Path) -> None:
    numbers, generator = np.random.default_rng(4), random.Random(4)
    for vocabulary in (1, 2, 5, 100, 3_000):
        for _ in range(20):
            shape = (100, vocabulary)
            logits = (numbers.normal(size=shape) * generator.choice([0.1, 3, 200])).astype(np.float32)
            if generator.random() < 0.5:  # many ties, zeros of both signs, and tokens that are ruled out
                logits = np.round(logits)
                logits[numbers.random(shape) < 0.2] = -0.0
                logits[:, 1:][numbers.random((100, vocabulary - 1)) < 0.2] = -np.inf
            assert_same_tokens(native, tmp_path, random_sampling(generator), logits)


def test_tokens_of_the_real_vocabularys_size(native: TextLines, tmp_path: Path) -> None:
    logits = (np.random.default_rng(5).normal(size=(4, 152_064)) * 3).astype(np.float32)
    for sampling in (Sampling(), Sampling(0.8, seed=3), Sampling(1.1, 50, 0.9, 7), Sampling(1.0, 5_000)):
        assert_same_tokens(native, tmp_path, sampling, logits)


def test_the_exponential(native: TextLines) -> None:
    x = -np.abs(np.random.default_rng(6).normal(size=5_000)) * np.repeat(
        [1e-6, 1.0, 30.0, 300.0, 800.0], 1_000
    )
    x = np.concatenate([x, [0.0, -0.0, -700.0, -700.1, -1e308, np.log(0.5)]])
    assert native.ask(exp=x.tolist())["values"] == exact_exp(x).tolist()
    normal = x > -700
    np.testing.assert_allclose(exact_exp(x)[normal], np.exp(x[normal]), rtol=5e-16)


def test_logits_that_are_no_numbers(native: TextLines, tmp_path: Path) -> None:
    path = tmp_path / "logits.bin"
    for bad in ([1.0, np.nan], [np.inf, 1.0], [-np.inf, -np.inf], [np.nan, np.nan]):
        logits = np.array(bad, dtype=np.float32)
        path.write_bytes(logits.tobytes())
        answer = native.ask(sample={"temperature": 1.0}, logits=str(path), vocabulary=2)
        with pytest.raises(NvlmError) as caught:
            Sampler(Sampling(1.0)).choose(logits)
        assert (answer["status"], answer["message"]) == (1, caught.value.message)
        assert_same_tokens(native, tmp_path, Sampling(), logits[None])
    # Behind the candidates NaN does no harm.
    assert_same_tokens(
        native, tmp_path, Sampling(1.0, top_k=2), np.array([[1, np.nan, 2, 3]], dtype=np.float32)
    )


@pytest.mark.parametrize("values", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_bad_settings(native: TextLines, values: dict[str, Any]) -> None:
    answer = native.ask(sample=values, logits="", vocabulary=1)
    with pytest.raises(UsageError, match=next(iter(values))):
        Sampling(**values)
    assert answer["status"] == 2
    assert answer["message"].startswith(next(iter(values)) + " is ")
