"""What an evaluation says of one wrong answer."""

import pytest

from trainer.evaluation import WrongAnswer


@pytest.mark.parametrize(
    ("read", "meant", "namesake"),
    [
        (("f:1", "The Bridge"), ("f:2", "The Bridge"), True),
        (("f:1", "The Bridge"), ("f:1", "The Bridge"), False),  # another relation of the right subject
        (("f:1", "The Bridge"), ("f:2", "The Tower"), False),
        (("f:1", None), ("f:2", None), False),
        ((None, None), ("f:2", "The Bridge"), False),
    ],
)
def test_a_namesake_is_another_subject_of_the_same_name(
    read: tuple[str | None, str | None], meant: tuple[str, str | None], namesake: bool
) -> None:
    answer = WrongAnswer(
        question="who directed the bridge",
        gold_subject_id=meant[0],
        gold_subject=meant[1],
        gold_relation="director",
        read_subject_id=read[0],
        read_subject=read[1],
        read_relation="director",
        read_objects=(),
        gold_rank=2,
    )
    assert answer.read_a_namesake is namesake
