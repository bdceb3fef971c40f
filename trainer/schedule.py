"""When the memory of a run is embedded again, which vectors training goes on with meanwhile, and what it waits for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from memory_store.memory import Memory
from pipeline.features import QuestionFeatures
from trainer.checkpoint import CheckpointInfo
from trainer.checkpointer import Checkpointer
from trainer.config import TrainConfig
from trainer.encoders.base import Encoder
from trainer.refresh import Refresher
from trainer.staleness import RefreshPolicy, Staleness
from trainer.watch import Watch

__all__ = ["Agree", "Schedule", "alone_agrees"]

Agree = Callable[[int], int]
"""What rank 0 says, to every worker; all of them call it at the same time."""

_log = logging.getLogger(__name__)


def alone_agrees(said: int) -> int:
    """Of a run of one worker, or of rank 0 in a test."""
    return said


@dataclass(frozen=True)
class _Asked:
    """A refresh under way beside the steps. step: whose model embeds; member: of it, or all."""

    step: int
    member: int | None


class Schedule:
    """Keeps the memory in step with a model that learns. Every worker has one; rank 0's embeds, commits and saves.

    member_steps: of each member; they are trained one after the other. While a member learns, the memory holds its
    vectors alone, which makes searches and refreshes as fast as they can be; for a checkpoint and at the end it is
    embedded by all. What a member starts with is waited for, as nothing could be searched without it.
    """

    def __init__(
        self,
        settings: TrainConfig,
        memory: Memory,
        encoder: Encoder,
        refresher: Refresher,
        checkpointer: Checkpointer,
        *,
        member_steps: int,
        rank: int,
        agree: Agree,
        watch: Watch | None,
        found: CheckpointInfo | None,
    ) -> None:
        self._settings = settings
        self._memory = memory
        self._encoder = encoder
        self._refresher = refresher
        self._checkpointer = checkpointer
        self._member_steps = member_steps
        self._rank = rank
        self._agree = agree
        self._watch = watch
        self._first = found.step if found is not None else 0
        self._generation = found.generation if found is not None else 0
        self._asked: _Asked | None = None
        self._is_saving_late = False  # a checkpoint was due while a refresh was under way
        self._was_late = False  # a refresh, and it was said
        self._lag_steps = settings.refresh_lag_steps or settings.refresh_every_steps
        self._policy = RefreshPolicy(
            most_drift=settings.refresh_drift,
            least_recall=settings.refresh_recall,
            check_every_steps=settings.refresh_check_steps,
        )
        # The vectors that are searched, and the step whose model made them. A run goes on with those that it had.
        self._served_step = found.serving_step if found is not None else 0
        self._can_go_on = found is not None and found.serving > 0
        self._held = self._alone(self._first) if self._can_go_on else -1  # the member; None: all; -1: nobody's

    def before(self, step: int, measure: Callable[[], Staleness]) -> None:
        """Do what is due before this step: take over what is ready, ask for more, save.

        measure: how stale the memory is; asked of rank 0 where a policy wants to know.
        """
        settings = self._settings
        own_step = step % self._member_steps
        refreshes, steps_since = divmod(own_step, settings.refresh_every_steps)
        is_scheduled = steps_since == 0
        is_first_of_all = step == self._first
        is_saving = is_scheduled and not is_first_of_all and refreshes % settings.checkpoint_every_refreshes == 0
        if own_step == 0:
            self._abandon()
        elif self._asked is not None and self._is_over(step):
            self._take_over(step)
        if (is_first_of_all and not self._can_go_on) or (is_scheduled and (own_step == 0 or self._waits())):
            self._refresh_now(step, is_saving)
        elif self._asked is not None:
            self._is_saving_late |= is_saving
        elif is_scheduled or self._is_saving_late or is_first_of_all:  # what a checkpoint beside was written with
            self._ask(step, is_saving=is_saving or self._is_saving_late)
        elif self._policy.is_checked_at(own_step) and self._is_too_stale(measure):
            if self._waits():
                self._refresh(self._alone(step), watched_at=step)
            else:
                self._ask(step, is_saving=False)

    def finish(self, total: int) -> int:
        """Embed the memory by the trained model, save it, and return that generation."""
        self._abandon()
        if total > self._first:
            self._refresh(None, watched_at=total)
            self._save(total)
        return self._generation

    def _waits(self) -> bool:
        return self._settings.refresh_wait == "always"

    def _alone(self, step: int) -> int | None:
        return step // self._member_steps if len(self._encoder.members) > 1 else None

    def _is_over(self, step: int) -> bool:
        """Whether what was asked for is taken over before this step."""
        assert self._asked is not None, "something was asked for"
        if (step - self._asked.step) % self._lag_steps:
            return False
        if self._settings.refresh_wait != "never" or self._agree(int(self._rank == 0 and self._refresher.is_ready())):
            return True
        self._note_late(step, self._asked)
        return False

    def _note_late(self, step: int, asked: _Asked) -> None:
        if self._rank == 0 and not self._was_late:
            _log.warning(
                "the refresh asked for at step %d is not ready at step %d: training goes on with the vectors that it "
                'has, and the seed alone does not determine this run (train.refresh_wait = "late" waits)',
                asked.step,
                step,
            )
        self._was_late = True

    def _is_too_stale(self, measure: Callable[[], Staleness]) -> bool:
        return bool(self._agree(int(self._rank == 0 and self._policy.is_due(measure()))))

    def _refresh_now(self, step: int, is_saving: bool) -> None:
        alone = self._alone(step)
        self._is_saving_late = False
        self._refresh(alone, watched_at=step)
        if not is_saving:
            return
        if alone is not None:
            self._refresh(None)
        self._save(step)
        if alone is not None:
            self._refresh(alone)

    def _refresh(self, alone: int | None, *, watched_at: int | None = None) -> None:
        """Embed with the model as it is; rank 0 commits, the others wait and serve what it committed.

        alone: embed by this member only, not by all. watched_at: the step at which the watch asks its sample.
        """
        watch = self._watch if watched_at is not None else None
        if watch is not None:
            watch.before_refresh(self._memory, self._encode(alone) if self._held == alone else None)
        self._serve(self._refresher.refresh(member=alone) if self._rank == 0 else 0, alone)
        if watched_at is not None:
            self._served_step = watched_at
        if watch is not None and watched_at is not None:
            watch.refreshed(watched_at, self._memory, self._encode(alone))

    def _save(self, step: int) -> None:
        if self._rank == 0:
            self._checkpointer.save(step, self._generation)
            self._refresher.sweep()  # what the checkpoint before named

    def _ask(self, step: int, *, is_saving: bool) -> None:
        """Have the model as it is embed the memory beside the next steps, and write a checkpoint with it if need be."""
        alone = self._alone(step)
        self._asked = _Asked(step, alone)
        self._is_saving_late = False
        if self._rank == 0:
            save = None
            if is_saving:
                save = self._checkpointer.begin(step, self._memory.generation, self._served_step)
            self._refresher.begin(member=alone, save=save)

    def _take_over(self, step: int) -> None:
        """Go on with the vectors that were asked for."""
        assert self._asked is not None, "something was asked for"
        asked, self._asked = self._asked, None
        encode = self._encode(asked.member)
        if self._watch is not None:
            self._watch.before_refresh(self._memory, encode if self._held == asked.member else None)
        self._serve(self._refresher.take_over() if self._rank == 0 else 0, asked.member)
        self._served_step = asked.step
        if self._watch is not None:
            self._watch.refreshed(step, self._memory, encode, as_of=asked.step)

    def _abandon(self) -> None:
        """What was asked for is not taken over: the memory is about to be embedded by what was learnt since."""
        if self._asked is not None and self._rank == 0:
            self._refresher.abandon()
        self._asked = None

    def _serve(self, generation: int, member: int | None) -> None:
        """All workers search what rank 0 committed from here on."""
        self._generation = self._agree(generation)
        self._held = member
        if self._rank == 0:
            self._refresher.sweep()
        else:
            self._memory.refresh(self._generation)

    def _encode(self, member: int | None) -> Callable[[QuestionFeatures], Tensor]:
        return partial(_encode_as_in_use, self._encoder, member)


def _encode_as_in_use(encoder: Encoder, member: int | None, questions: QuestionFeatures) -> Tensor:
    was_training = encoder.training
    try:
        return encoder.eval().encode_questions(questions, member=member)
    finally:
        encoder.train(was_training)
