"""What is held out of training, and what a bundle takes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import UsageError
from nvlm_deploy.train.data.sources import TrainingPart
from nvlm_deploy.train.plan import plan_training
from nvlm_deploy.verify.probe_file import single_question
from tests.training import settings


class Numbers:
    """Ten conversations that say their number."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int, /) -> Conversation:
        return Conversation.of(f"number {index}", [{"role": "user", "content": str(index)}])


def test_a_source_is_split_in_two() -> None:
    part = TrainingPart.split(Numbers(), "numbers", 10, 3, seed=7)
    assert len(part) == 7
    trained = [part[index].label for index in range(len(part))]
    unseen = [Numbers()[index].label for index in part.held_out]
    assert sorted([*trained, *unseen]) == [f"number {index}" for index in range(10)]
    assert TrainingPart.split(Numbers(), "numbers", 10, 3, seed=7).held_out == part.held_out
    assert TrainingPart.split(Numbers(), "others", 10, 3, seed=7).held_out != part.held_out


def test_something_has_to_be_left() -> None:
    with pytest.raises(UsageError, match=r"data\.held_out is 10, and the source 'numbers' has 10"):
        TrainingPart.split(Numbers(), "numbers", 10, 10, seed=7)


def test_plans_count_what_is_trained_on(checkpoints: dict[str, Path], lines: Path, tmp_path: Path) -> None:
    values = settings(checkpoints["D"], lines, tmp_path, data={"held_out": 5})
    plan = plan_training(TrainingConfig.model_validate(values), lines.parent)
    (source,) = plan.to_dict()["sources"]
    assert source["samples"] == len(lines.read_text().splitlines()) - 5
    held = {f"{lines}:{index + 1}" for index in plan.opened[0].held_out}
    order = iter(plan.order())
    drawn = {plan.opened[0][next(order).index].label for _ in range(30)}
    assert len(drawn) == source["samples"]
    assert not drawn & held


@pytest.mark.parametrize(
    ("messages", "images", "expected"),
    [
        ([("user", "Why?"), ("assistant", "So.")], 0, ("Why?", "So.")),
        (
            [("user", [{"type": "image"}, {"type": "text", "text": "What?"}]), ("assistant", "A dog.")],
            1,
            ("What?", "A dog."),
        ),
        ([("user", "Why?")], 0, None),
        ([("user", "Why?"), ("assistant", "So."), ("user", "And?"), ("assistant", "No.")], 0, None),
        ([("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")], 0, None),
        (
            [("user", [{"type": "text", "text": "What?"}, {"type": "image"}]), ("assistant", "A dog.")],
            1,
            None,
        ),
    ],
)
def test_probes_are_single_questions_with_the_image_first(
    messages: list[tuple[str, Any]], images: int, expected: tuple[str, str] | None
) -> None:
    chat = [{"role": role, "content": content} for role, content in messages]
    found = single_question(Conversation.of("one", chat, ["dog.png"] * images))
    assert (None if found is None else (found.question, found.answer)) == expected
