"""Ctrl-C and SIGTERM (what a job queue sends before it kills) end a run after its step, not in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fastrcnn.training.log import say


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    """Inside it, SIGTERM ends what is under way as Ctrl-C does: loaders end, and unfinished files are removed.

    For the parts of a run that are no steps: reading the data, evaluating. Use as `with` or as a decorator. Where
    SIGTERM has another handler, and in a thread that is not the main one, it does nothing.

    Raises:
        SystemExit: with 128 + SIGTERM, as a shell reports such an end.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except Terminated:
        say("Stopped by SIGTERM. To continue from the last checkpoint: the same command with --resume")
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
