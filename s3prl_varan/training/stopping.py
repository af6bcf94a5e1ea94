"""Stopping on request: a scheduler's or a user's signal ends the run after its next step, saved."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, number: int, folder: Path, step: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name} at step {step}, saved in {folder}; the same "
            "command with -a goes on from there"
        )
        self.number = number


class StopRequests:
    """While it is entered the signals only leave a note in `received`; a second one interrupts."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequests":
        for each in SIGNALS:
            try:
                self._before[each] = signal.signal(each, self._note)
            except ValueError:  # not in the main thread: whoever runs that one has them
                break
        return self

    def __exit__(self, *_: Any) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def hand_on(self) -> None:
        """After it: let whoever had a handler of his own before (a sweep's worker) hear of it."""
        before = self._before.get(signal.Signals(self.received)) if self.received else None
        if callable(before) and before is not signal.default_int_handler:
            before(self.received, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
