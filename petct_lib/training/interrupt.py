"""Notes SIGINT (Ctrl-C) or SIGTERM: `loop.fit` then finishes the step, saves and stops."""

import signal
import threading
from types import FrameType


class Interrupt:
    """While it is entered, the first SIGINT or SIGTERM only sets `asked`; the second stops at once, as ever.

    In a thread that is not the main one Python delivers no signals, and nothing changes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self.number: int | None = None

    def __enter__(self) -> "Interrupt":
        here = threading.current_thread() is threading.main_thread()
        self.before = {number: signal.signal(number, self._note) for number in self.SIGNALS} if here else {}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.number = True, number
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def stop(self, message: str) -> None:
        """Raises what the signal would have: KeyboardInterrupt with the message, or SystemExit 143 for SIGTERM."""
        if self.number == signal.SIGTERM:
            print(message, flush=True)
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(f"{message}; run it again with resume=True to go on")
