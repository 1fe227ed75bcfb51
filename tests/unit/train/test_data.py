"""Sources, order, packing, tiles that degrade, samples that are skipped, and going on in the middle."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.config.blend import Blend, LlavaData, WebDatasetData, read_blend
from nvlm_deploy.config.training import DataSection
from nvlm_deploy.errors import NvlmError
from nvlm_deploy.preprocess import PromptBuilder
from nvlm_deploy.train.data.order import BlendOrder
from nvlm_deploy.train.data.packing import Size, choose_samples
from nvlm_deploy.train.data.sample import build_train_sample
from nvlm_deploy.train.data.sources import open_data_source
from nvlm_deploy.train.data.stream import SampleDataset, SequenceStream, Share, resume_state

PIXEL = io.BytesIO()
Image.new("RGB", (80, 40), (10, 90, 200)).save(PIXEL, "PNG")


def llava(folder: Path, records: list[Any], lines: bool = False) -> LlavaData:
    name = "data.jsonl" if lines else "data.json"
    text = "".join(json.dumps(r) + "\n" for r in records) if lines else json.dumps(records)
    (folder / name).write_text(text)
    return LlavaData(kind="llava", name="llava", path=name)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize("lines", [False, True])
def test_llava_records(tmp_path: Path, lines: bool) -> None:
    records = [
        {"id": "a1", "image": "a.png", "conversations": turns("<image>\nWhat?", "This.", "More?", "That.")},
        {"id": "t1", "conversations": turns("Hello", "Hi")},
        {"id": "m1", "image": ["a.png", "b.png"], "conversations": turns("<image> or <image>?", "First.")},
        {"id": "bad", "image": "a.png", "conversations": [{"from": "robot", "value": "x"}]},
    ]
    opened = open_data_source(llava(tmp_path, records, lines), 56, tmp_path)
    assert len(opened) == 4
    first = opened[0]
    assert first.images == (tmp_path / "a.png",)
    assert first.answer == "That."
    assert [message["role"] for message in first.prompt] == ["user", "assistant", "user"]
    assert opened[1].images == ()
    assert len(opened[2].images) == 2
    with pytest.raises(NvlmError, match=r"id bad.*robot"):
        opened[3]


def shard(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def energon(folder: Path, kind: str, fields: dict[str, str]) -> None:
    meta = folder / ".nv-meta"
    meta.mkdir()
    (meta / "dataset.yaml").write_text(
        f"sample_type:\n  __module__: megatron.energon\n  __class__: {kind}\nfield_map:\n"
        + "".join(f"  {key}: {value}\n" for key, value in fields.items())
    )
    (meta / "split.yaml").write_text(
        "exclude: []\nsplit_parts:\n  train: ['shards/s_{0..1}.tar']\n  val: [shards/s_2.tar]\n"
    )


def test_energon_shards_by_their_field_map(tmp_path: Path) -> None:
    for number in range(3):
        answer = json.dumps([{"question": f"Q{number}?", "answers": [f"A{number}", "other"]}]).encode()
        files = {f"x/{number}.png": PIXEL.getvalue(), f"x/{number}.json": answer}
        shard(tmp_path / "shards" / f"s_{number}.tar", files)
    fields = {"image": "jpg;png", "context": "json[0][question]", "answers": "json[0][answers]"}
    energon(tmp_path, "VQASample", fields)
    source = WebDatasetData(kind="webdataset", name="w", path=".", prompts=["{}\nIn a word."])
    opened = open_data_source(source, 56, tmp_path)
    assert len(opened) == 2
    assert opened[1].answer == "A1"
    assert opened[1].images == (PIXEL.getvalue(),)
    assert opened[1].prompt[0]["content"][1] == {"type": "text", "text": "Q1?\nIn a word."}
    held = open_data_source(source.model_copy(update={"split": "val"}), 56, tmp_path)
    assert [held[0].answer, len(held)] == ["A2", 1]


def test_shards_without_meta_are_read_by_what_they_have(tmp_path: Path) -> None:
    record = {"id": 7, "conversations": turns("<image>\nWhat?", "That.")}
    shard(
        tmp_path / "a.tar",
        {
            "0.jpg": PIXEL.getvalue(),
            "0.txt": b"A caption.",
            "1.png": PIXEL.getvalue(),
            "1.json": json.dumps(record).encode(),
            "2.json": json.dumps({"question": "Text?", "answer": "Only."}).encode(),
            "3.png": PIXEL.getvalue(),
        },
    )
    opened = open_data_source(WebDatasetData(kind="webdataset", name="w", path="."), 56, tmp_path)
    assert [opened[i].answer for i in range(3)] == ["A caption.", "That.", "Only."]
    assert [len(opened[i].images) for i in range(3)] == [1, 1, 0]
    with pytest.raises(NvlmError, match=r"a\.tar:3 has no part txt"):
        opened[3]


def test_energon_code_is_never_run(tmp_path: Path) -> None:
    shard(tmp_path / "shards" / "s_0.tar", {"0.txt": b"x"})
    energon(tmp_path, "VQASample", {"image": "png"})
    (tmp_path / ".nv-meta" / "dataset.yaml").write_text("sample_loader: loader.py:load\n")
    with pytest.raises(NvlmError, match="never run"):
        open_data_source(WebDatasetData(kind="webdataset", name="w", path="."), 56, tmp_path)


def test_a_blend_has_one_source_of_a_name(tmp_path: Path) -> None:
    text = "name: b\ndescription: c\nsources:\n" + "  - {kind: llava, name: a, path: x.json}\n" * 2
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(NvlmError, match="two sources are called 'a'"):
        read_blend(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").write_text(text.replace("name: a", "name: z", 1))
    assert isinstance(read_blend(tmp_path / "b.yaml"), Blend)


def test_order_goes_by_weight_and_shows_all_before_any_again() -> None:
    draws = list(islice(iter(BlendOrder([3.0, 1.0], [50, 1000], seed=5)), 4000))
    first = [draw.index for draw in draws if draw.source == 0]
    assert abs(len(first) / 4000 - 0.75) < 0.03
    epochs = [first[start : start + 50] for start in range(0, 150, 50)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_order_goes_on_from_its_state() -> None:
    order = BlendOrder([1.0, 2.0], [7, 11], seed=1)
    list(islice(iter(order), 30))
    again = BlendOrder([1.0, 2.0], [7, 11], seed=1, **order.state())
    assert list(islice(iter(order), 40)) == list(islice(iter(again), 40))


def test_packing_takes_the_oldest_and_what_fits_best() -> None:
    waiting = [Size(40, 1), Size(70, 1), Size(30, 5), Size(55, 1), Size(10, 1), Size(5, 9)]
    assert choose_samples(waiting, 100) == [0, 3, 5]
    assert choose_samples(waiting, 100, max_tiles=3) == [0, 3]
    assert choose_samples([Size(100, 50), Size(1, 0)], 100, max_tiles=3) == [0]


@pytest.fixture
def dataset(builders: dict[str, PromptBuilder], lines: Path, tmp_path: Path) -> SampleDataset:
    """Twelve samples of which one has an empty answer and one a broken image."""
    folder = tmp_path / "lines"
    folder.mkdir()
    for path in lines.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "7.png").write_bytes(b"no image")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    records[4]["answer"] = " "
    (folder / "lines.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = DataSection.model_validate(
        {
            "max_length": 300,
            "packing": True,
            "packing_buffer": 5,
            "sources": [{"kind": "jsonl", "name": "lines", "path": "lines.jsonl"}],
        }
    )
    opened = open_data_source((data.sources or [])[0], 56, folder)
    return SampleDataset([opened], ["lines"], builders["H"], data)


def stream(dataset: SampleDataset, **options: Any) -> SequenceStream:
    return SequenceStream(dataset, BlendOrder([1.0], [12], seed=3), **options)


def labels(source: SequenceStream, count: int) -> list[list[str]]:
    return [[sample.label for sample in row] for row in islice(iter(source), count)]


def test_stream_is_the_same_for_any_number_of_workers(dataset: SampleDataset) -> None:
    assert labels(stream(dataset), 8) == labels(stream(dataset, workers=2), 8)


def test_stream_goes_on_from_every_place(dataset: SampleDataset) -> None:
    whole = labels(stream(dataset), 9)
    for stop in (1, 4, 6):
        before = stream(dataset)
        first = labels(before, stop)
        state = json.loads(json.dumps(before.state()))
        after = stream(dataset, state=state)
        assert first + labels(after, 9 - stop) == whole
        assert after.skipped >= state["skipped"]


def test_bad_samples_are_counted_and_named(dataset: SampleDataset) -> None:
    seen: dict[str, str] = {}
    source = stream(dataset, on_skip=lambda draw, sample: seen.update({sample.label: sample.reason}))
    good = {label for row in labels(source, 6) for label in row}
    assert len(seen) == 2
    assert not good & set(seen)
    assert any("the answer is empty" in reason for reason in seen.values())
    assert any("7.png is not an image" in reason for reason in seen.values())
    limited = replace(dataset, data=dataset.data.model_copy(update={"max_skipped": 1}))
    with pytest.raises(NvlmError, match="2 samples were skipped"):
        labels(stream(limited), 6)


def test_shares_make_up_the_whole(dataset: SampleDataset) -> None:
    unpacked = replace(dataset, data=dataset.data.model_copy(update={"packing": False}))
    whole = [row[0] for row in labels(stream(unpacked), 8)]
    shares = [labels(stream(unpacked, share=Share(rank, 2)), 4) for rank in range(2)]
    # A bad sample is left out by the process that drew it.
    assert set(whole[:6]) <= {row[0] for share in shares for row in share}


def test_another_number_of_processes_goes_on_behind_the_slowest() -> None:
    draws = [{"number": n, "source": 0, "index": n} for n in range(6)]
    states = [
        {"order": {"number": 4, "taken": [4]}, "waiting": [draws[2]], "skipped": 1},
        {"order": {"number": 6, "taken": [6]}, "waiting": [draws[1], draws[5]], "skipped": 2},
    ]
    assert resume_state(states, Share(1, 2)) is states[1]
    alone = resume_state(states, Share(0, 1))
    assert alone == {"order": {"number": 4, "taken": [4]}, "waiting": [draws[2], draws[1]], "skipped": 3}


def test_tiles_degrade_until_the_sample_fits(builders: dict[str, PromptBuilder]) -> None:
    builder = builders["D"]
    image = Image.new("RGB", (168, 112))
    conversation = Conversation.of(
        "here",
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": "A"},
        ],
        [image],
    )

    def built(length: int) -> tuple[int, int]:
        sample = build_train_sample(conversation, builder, DataSection(max_length=length))
        assert len(sample) <= length
        return sample.max_tiles, len(sample.tiles)

    whole = len(build_train_sample(conversation, builder, DataSection(max_length=512)).answered)
    assert built(whole) == (6, 7)
    assert built(whole - 1) == (4, 5)
    smallest = len(build_train_sample(conversation, builder, DataSection(max_length=512, max_tiles=1)))
    assert built(smallest) == (1, 1)
    with pytest.raises(NvlmError, match=rf"here: {smallest} tokens, more than data.max_length"):
        built(smallest - 1)
