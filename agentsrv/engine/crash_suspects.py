"""Suspects: which attempts may run after a crash, so that the next crash shows its cause.

Theory of operation
===================

A crash of the server's process interrupts every attempt whose code ran. One of them caused it, and
nothing in the crash says which. So each of them gets a *loss* (``step_lost`` in the log). Progress
sets the losses of a step to 0: its completion, an answer, text beyond that of all its earlier
attempts. A step that waits (for an answer, a back-off, its turn) runs no code and gets no loss; nor
does any step when the server's process had declared that it stops.

A step with ``SUSPECT_AT`` losses is a *suspect*: it is suspected of crashing the server. From then
on the node isolates it:

- At most one suspect runs at a time. Those with the most losses go first. A suspect has its turn
  until it makes progress, waits, or its attempt ends.
- For the first ``TURN`` seconds of its turn, or until the turn ends, no other attempt of the node
  begins. A crash in this time has one possible cause. After it other attempts begin beside the
  suspect, so a long silent step does not hold up the node.
- After a crash, the tasks that it interrupted are reviewed together (``CrashReview``) before any of
  them runs again. If attempts without progress that are not suspects ran beside a suspect, the
  suspect gets no further loss: it has run alone for ``TURN`` seconds without a crash, so one of the
  others is the likelier cause. They get their loss, and become suspects in their turn.

A step fails at its loss number ``FAILS_AT``. As a suspect gets a loss only for a crash in which no
other attempt could be the cause, a task never fails for the crashes of another one on its node.

========= ================================= ==============================================
losses    meaning                           may begin
========= ================================= ==============================================
0         has made progress, or never lost  unless a suspect is in its first ``TURN`` seconds
1         ran at a crash                    likewise
2 to 4    suspect                           alone, one after the other
5         the step fails                    never
========= ================================= ==============================================

Before a crash nothing of this costs more than one look at ``closed`` for each attempt. One object
of this module serves all tasks of a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Final, NamedTuple

SUSPECT_AT: Final = 2  # losses
FAILS_AT: Final = 5  # losses
TURN: Final = 10.0  # seconds in which a suspect is alone
LINING_UP: Final = 0.1  # seconds after a review in which the suspects come to their attempts


class Interrupted(NamedTuple):
    """An attempt whose code ran when the process crashed."""

    step_id: str | None
    """``None`` where the plan was made."""
    attempt: int
    losses: int
    """Those before this crash."""
    progressed: bool
    """Whether the attempt had made progress."""

    @property
    def is_suspect(self) -> bool:
        """Whether it ran as a suspect."""
        return self.losses >= SUSPECT_AT and not self.progressed

    @property
    def is_other_cause(self) -> bool:
        """Whether it may be the cause although it was no suspect."""
        return self.losses < SUSPECT_AT and not self.progressed


class CrashReview:
    """What the tasks that one crash interrupted report together."""

    def __init__(self) -> None:
        self.due = 0
        """Tasks that have not reported yet."""
        self.other_cause = False
        """Whether an attempt that was no suspect may be the cause."""
        self.has_suspects = False


class CrashSuspects:
    """Admits attempts; see the head of this module."""

    def __init__(self) -> None:
        self.closed = False
        """Whether an attempt must ask ``admit`` before it begins; a suspect always must."""
        self._review = CrashReview()
        self._line: list[tuple[int, int, object]] = []
        """Suspects that wait: those with the most losses first, then in the order of coming."""
        self._number = count()
        self._holder: object | None = None
        self._alone: asyncio.TimerHandle | None = None
        """While the holder is in its first ``TURN`` seconds."""
        self._lining_up: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def begin_review(self, tasks: int) -> CrashReview:
        """Let no attempt begin until that many crashed tasks have reported or withdrawn.

        Tasks that come while others are still due join them: they may be of the same crash.
        """
        if not self._review.due:
            self._review = CrashReview()
        self._review.due += tasks
        self._update()
        return self._review

    async def report(self, review: CrashReview, interrupted: Sequence[Interrupted]) -> bool:
        """Report which attempts of a task a crash interrupted, then wait for the other tasks.

        Returns:
            Whether an attempt of any of the tasks that was no suspect may be the cause.
        """
        review.other_cause |= any(each.is_other_cause for each in interrupted)
        review.has_suspects |= any(each.losses + 1 >= SUSPECT_AT for each in interrupted)
        self.withdraw(review)
        while review.due:
            await self._change()
        return review.other_cause

    def withdraw(self, review: CrashReview) -> None:
        """Do not wait for one of the tasks any more."""
        review.due -= 1
        if not review.due and review.has_suspects and self._lining_up is None:
            loop = asyncio.get_running_loop()
            self._lining_up = loop.call_later(LINING_UP, self._end_lining_up)
        self._update()

    async def admit(self, who: object, losses: int) -> None:
        """Wait until an attempt may begin; a suspect must ``leave`` when its turn is over."""
        if losses < SUSPECT_AT:
            while self.closed:
                await self._change()
            return
        place = (-losses, next(self._number), who)
        self._line.append(place)
        self._line.sort(key=lambda each: each[:2])
        try:
            self._update()
            while (
                self._is_gathering or self._holder not in (None, who) or self._line[0] is not place
            ):
                await self._change()
            self._holder = who
            if self._alone is None:
                loop = asyncio.get_running_loop()
                self._alone = loop.call_later(TURN, self._end_alone)
        finally:
            self._line.remove(place)
            self._update()

    def leave(self, who: object) -> None:
        """End the turn of a suspect, if it has it."""
        if self._holder is who:
            self._holder = None
            if self._alone is not None:
                self._alone.cancel()
                self._alone = None
            self._update()

    @property
    def _is_gathering(self) -> bool:
        return self._review.due > 0 or self._lining_up is not None

    def _update(self) -> None:
        """Decide anew who may begin, and let those who wait look at it."""
        is_next = self._holder is None and bool(self._line)
        self.closed = self._is_gathering or self._alone is not None or is_next
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def _change(self) -> None:
        changed = asyncio.get_running_loop().create_future()
        self._waiting.append(changed)
        await changed

    def _end_lining_up(self) -> None:
        self._lining_up = None
        self._update()

    def _end_alone(self) -> None:
        self._alone = None
        self._update()
