"""A live transcript on a terminal: finals scroll up, each speaker's partial waits below them."""

import shutil
import sys
from typing import Any, TextIO

#: Okabe-Ito hues as 256-colour codes: sky blue, orange; told apart by colour-blind people too.
_COLOURS = {"caller": 74, "agent": 214}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"


def clock(seconds: float) -> str:
    """Return ``mm:ss.d``."""
    return f"{int(seconds // 60):02d}:{seconds % 60:04.1f}"


class LiveView:
    """Prints the events of one call.

    On a terminal partials are rewritten in place; elsewhere only finals are printed, a line each.
    """

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._partials: dict[str, tuple[int, str]] = {}
        self._drawn = 0
        self.finals = 0

    def handle(self, event: dict[str, Any]) -> None:
        """Show one live event."""
        kind = event["type"]
        if kind == "transcript.partial":
            self._partials[event["leg"]] = (event["segment"], event["text"])
            self._redraw()
        elif kind == "transcript.final":
            self._drop_partial(event["leg"], event["segment"])
            self.finals += 1
            self.say(f"{clock(event['start'])}  {self._label(event['leg'])}  {event['text']}")
        elif kind == "leg.ended":
            self._partials.pop(event["leg"], None)
            self._redraw()
        elif kind == "lag.updated" and event["state"] == "recording":
            self.say(self._dim("         a leg gets no live text"))
        elif kind == "lag.updated" and event["state"] != "ok":
            self.say(self._dim(f"         recognition is {event['lag_s']:.1f} s behind"))

    def say(self, line: str) -> None:
        """Print a line above the partials."""
        self._erase()
        self._out.write(line + "\n")
        self._redraw()

    def status(self, line: str) -> None:
        """Show a line that the next one replaces; elsewhere than on a terminal, nothing."""
        if not self._live:
            return
        self._erase()
        self._out.write(self._clip(line) + "\n")
        self._drawn = 1
        self._out.flush()

    def _drop_partial(self, leg: str, segment: int) -> None:
        if self._partials.get(leg, (None,))[0] == segment:
            del self._partials[leg]

    def _erase(self) -> None:
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
        self._drawn = 0

    def _redraw(self) -> None:
        if self._live:
            self._erase()
            for leg, (_, text) in sorted(self._partials.items(), reverse=True):
                if text:
                    self._out.write(self._dim(self._clip(f"   ...   {leg:<7} {text}")) + "\n")
                    self._drawn += 1
        self._out.flush()

    def _clip(self, line: str) -> str:
        """Keep the end of a line that is too wide: the newest words are there."""
        width = shutil.get_terminal_size().columns - 1
        return line if len(line) <= width else line[:19] + "…" + line[-(width - 20) :]

    def _label(self, leg: str) -> str:
        colour = _COLOURS.get(leg)
        if not self._live or colour is None:
            return f"{leg:<7}"
        return f"\x1b[38;5;{colour}m{leg:<7}{_RESET}"

    def _dim(self, text: str) -> str:
        return f"{_DIM}{text}{_RESET}" if self._live else text
