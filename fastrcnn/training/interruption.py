"""Ctrl-C and SIGTERM (what a job queue sends before it kills) end a run after its step, not in the middle of one."""

import signal
import threading
from types import FrameType


class StopRequest:
    """A context manager: inside it, the first SIGINT or SIGTERM sets `signal`, a second SIGINT acts at once.

    A signal is never lost: one that came too late for the block to leave by an exception acts when the block has ended.

    Only the main thread of a program can handle signals; elsewhere this does nothing and `signal` stays None.

        with StopRequest() as stop:
            for batch in batches:
                ...
                if stop.signal is not None: save and leave
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it is what signal.signal gave
        if self.signal is not None and kind is None:
            signal.raise_signal(self.signal)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
