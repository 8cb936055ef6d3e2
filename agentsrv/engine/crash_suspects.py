"""CrashSuspects: which attempts may begin after a crash, so that the next crash shows its cause.

Theory of operation
===================

A crash of the server's process interrupts every attempt whose code ran. One of them caused it, and
nothing in the crash says which. So each of them gets a *loss* (``step_lost`` in the log). Progress
sets the losses of a step to 0: its completion, an answer, or text beyond that of all its earlier
attempts. A step that waits (for an answer, a back-off, admission) runs no code and gets no loss;
nor does any step if the server's process had declared that it stops.

A step with ``SUSPECT_LOSSES`` losses is a *suspect*: it may be the one that crashes the server. The
node isolates it:

- At most one suspect runs at a time. Those with the most losses go first. A suspect stays isolated
  until it makes progress, waits, or its attempt ends.
- For the first ``ISOLATION_TIME`` seconds no other attempt of the node begins. A crash in this
  time has one possible cause. Afterwards other attempts begin alongside the suspect, so a long
  silent step does not hold up the node.
- After a crash, the tasks that it interrupted are reviewed together (``CrashReview``) before any of
  them runs again. If attempts without progress that are not suspects ran alongside a suspect, the
  suspect gets no further loss: it has run alone for ``ISOLATION_TIME`` seconds without a crash, so
  one of the others is the likelier cause. They get their loss, and become suspects later.

A step fails at its loss number ``MAX_LOSSES``. A suspect gets a loss only for a crash that no other
attempt can have caused, so a task never fails because of the crashes of another task on its node.

========= ===================================== ================================================
losses    meaning                               may begin
========= ===================================== ================================================
0         has made progress, or was never lost  unless a review or an isolation excludes others
1         ran at a crash                        likewise
2 to 4    suspect                               when it is isolated, one suspect after the other
5         the step fails                        never
========= ===================================== ================================================

``is_restricted`` is true if attempts must call ``admit`` before they begin:

================== =============================================================================
because of         until
================== =============================================================================
a review           all tasks that the crash interrupted have reported; if there are suspects among
                   them, for ``GATHER_TIME`` more seconds, in which they reach their attempts
an isolation       its first ``ISOLATION_TIME`` seconds are over, or the suspect is released
a waiting suspect  it is isolated: suspects go before other attempts
================== =============================================================================

Without a crash all of this costs one look at ``is_restricted`` for each attempt. One object serves
all tasks of a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Final, NamedTuple

SUSPECT_LOSSES: Final = 2
MAX_LOSSES: Final = 5  # the step fails at this one
ISOLATION_TIME: Final = 10.0  # seconds in which no other attempt begins
GATHER_TIME: Final = 0.1  # seconds after a review in which suspects reach their attempts


class Interrupted(NamedTuple):
    """An attempt whose code ran when the process crashed."""

    step_id: str | None
    """``None`` for the planner."""
    attempt: int
    losses: int
    """Losses before this crash."""
    progressed: bool
    """Whether the attempt had made progress."""

    @property
    def is_suspect(self) -> bool:
        """Whether it ran as a suspect."""
        return self.losses >= SUSPECT_LOSSES and not self.progressed

    @property
    def is_other_cause(self) -> bool:
        """Whether it may be the cause although it was not a suspect."""
        return self.losses < SUSPECT_LOSSES and not self.progressed


class CrashReview:
    """The common findings of all tasks that one crash interrupted."""

    def __init__(self) -> None:
        self.due = 0
        """Tasks that have not reported yet."""
        self.other_cause = False
        """Whether an attempt that was not a suspect may be the cause."""
        self.has_suspects = False


class CrashSuspects:
    """Admits attempts; see the head of this module."""

    def __init__(self) -> None:
        self.is_restricted = False
        """Whether an attempt must call ``admit`` before it begins; a suspect always must."""
        self._review = CrashReview()
        self._queue: list[tuple[int, int, object]] = []
        """Suspects that wait: those with the most losses first, then in the order of arrival."""
        self._arrivals = count()
        self._isolated: object | None = None
        self._isolation_timer: asyncio.TimerHandle | None = None
        """Runs during the first ``ISOLATION_TIME`` seconds of an isolation."""
        self._gather_timer: asyncio.TimerHandle | None = None
        """Runs for ``GATHER_TIME`` seconds after a review that found suspects."""
        self._waiters: list[asyncio.Future[None]] = []

    def begin_review(self, tasks: int) -> CrashReview:
        """Let no attempt begin until that many interrupted tasks have reported or withdrawn.

        Tasks that are claimed while others are still due join their review: the same crash may have
        interrupted them.
        """
        if not self._review.due:
            self._review = CrashReview()
        self._review.due += tasks
        self._update()
        return self._review

    async def report(self, review: CrashReview, interrupted: Sequence[Interrupted]) -> bool:
        """Report which attempts of a task a crash interrupted, then wait for the other tasks.

        Returns:
            Whether an attempt of any of the tasks that was not a suspect may be the cause.
        """
        review.other_cause |= any(each.is_other_cause for each in interrupted)
        review.has_suspects |= any(each.losses + 1 >= SUSPECT_LOSSES for each in interrupted)
        self.withdraw(review)
        while review.due:
            await self._wait_for_change()
        return review.other_cause

    def withdraw(self, review: CrashReview) -> None:
        """Stop waiting for the report of one of the tasks."""
        review.due -= 1
        if not review.due and review.has_suspects and self._gather_timer is None:
            loop = asyncio.get_running_loop()
            self._gather_timer = loop.call_later(GATHER_TIME, self._end_gathering)
        self._update()

    async def admit(self, applicant: object, losses: int) -> None:
        """Wait until an attempt may begin.

        A suspect is isolated when this returns, and must be released. Cancelling the call withdraws
        the applicant.
        """
        if losses < SUSPECT_LOSSES:
            while self.is_restricted:
                await self._wait_for_change()
            return
        entry = (-losses, next(self._arrivals), applicant)
        self._queue.append(entry)
        self._queue.sort(key=lambda each: each[:2])
        try:
            self._update()
            while (
                self._is_reviewing
                or self._isolated not in (None, applicant)
                or self._queue[0] is not entry
            ):
                await self._wait_for_change()
            self._isolated = applicant
            if self._isolation_timer is None:
                loop = asyncio.get_running_loop()
                self._isolation_timer = loop.call_later(ISOLATION_TIME, self._end_isolation_time)
        finally:
            self._queue.remove(entry)
            self._update()

    def release(self, applicant: object) -> None:
        """End the isolation of a suspect; no effect on any other applicant."""
        if self._isolated is applicant:
            self._isolated = None
            if self._isolation_timer is not None:
                self._isolation_timer.cancel()
                self._isolation_timer = None
            self._update()

    @property
    def _is_reviewing(self) -> bool:
        return self._review.due > 0 or self._gather_timer is not None

    def _update(self) -> None:
        """Decide anew whether attempts are restricted, and wake up all waiting applicants."""
        is_suspect_next = self._isolated is None and bool(self._queue)
        self.is_restricted = (
            self._is_reviewing or self._isolation_timer is not None or is_suspect_next
        )
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _wait_for_change(self) -> None:
        changed = asyncio.get_running_loop().create_future()
        self._waiters.append(changed)
        await changed

    def _end_gathering(self) -> None:
        self._gather_timer = None
        self._update()

    def _end_isolation_time(self) -> None:
        self._isolation_timer = None
        self._update()
