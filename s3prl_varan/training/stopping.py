"""Stopping on request: a scheduler's or a user's signal ends the run after its next step, saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """A command that a signal ended."""

    def __init__(self, number: int, saved: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {saved}")
        self.number = number


class Stopped(Interrupted):
    """A run that was asked to stop and has saved its state."""

    def __init__(self, number: int, folder: Path, step: int):
        super().__init__(
            number,
            f"at step {step}, saved in {folder}; the same command with -a goes on from there",
        )


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that ends the command at once."""
    raise Interrupted(
        number,
        "between steps: nothing was saved since the last checkpoint. The same command with -a goes "
        "on from there, or starts anew where there is none.",
    )


@contextmanager
def ending_by_signal() -> Iterator[None]:
    """Meanwhile each of SIGNALS raises Interrupted; for a whole command."""
    before = _handle_by(interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _handle_by(handler: Handler) -> dict[signal.Signals, Any]:
    """Let SIGNALS go to `handler`; what was there before."""
    try:
        return {each: signal.signal(each, handler) for each in SIGNALS}
    except ValueError:  # not in the main thread: whoever runs that one has them
        return {}


class StopRequests:
    """While it is entered the signals only leave a note in `received`; a second one interrupts."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequests":
        self._before = _handle_by(self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def hand_on(self) -> None:
        """After it: let whoever had a handler of his own before (a sweep's worker) hear of it."""
        before = self._before.get(signal.Signals(self.received)) if self.received else None
        if callable(before) and before not in (interrupt, signal.default_int_handler):
            before(self.received, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            interrupt(number, frame)
        self.received = number
