"""When live recognition decodes what: the figures that all its parts go by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from callcore.endpointing import EndpointConfig


@dataclass(frozen=True, slots=True)
class RecognizerConfig:
    """When what is decoded. Seconds of audio, except where it says seconds of the clock."""

    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    tick_s: float = 0.064
    """Seconds of the clock between two looks at the rings: two windows."""
    windows_per_call: int = 64
    """Windows of one leg that one call of the speech detector takes at most."""
    max_batch: int = 4
    """Jobs that are decoded together at most: eight fall out of the cache of a core (measured).

    An engine whose spec says otherwise gets as many as that says.
    """
    first_partial_s: float = 0.5
    """Length of an utterance's first partial."""
    partial_intervals_s: tuple[float, ...] = (0.6, 0.8, 1.2, 2.0)
    """Speech between two partials, by rising load; then partials stop, then speculation."""
    redo_interval_s: float = 1.2
    """Finals get a wide beam, and a second decode if doubtful, as long as partials are no rarer
    than this."""
    overloaded_s: float = 0.4
    """A decoder is late while a final waits longer than this on the clock, or a partial longer
    than this and than the interval. One full batch is no reason: see ``late_window_s``."""
    late_window_s: float = 2.0
    """Seconds of the clock over which it counts for how much of the time a decoder is late."""
    overloaded_share: float = 0.5
    """Load rises while it is late for more of the time than this ..."""
    relaxed_share: float = 0.2
    """... and falls while it is late for less."""
    rise_s: float = 0.5
    """Seconds of the clock between two rises."""
    fall_s: float = 3.0
    """Seconds of the clock after a change before a fall."""
    final_due_s: float = 0.3
    """Deadline of a final after its endpoint, on the clock; later than its speculation's."""
    behind_s: float = 3.0
    """Words this late are ``behind`` ..."""
    caught_up_s: float = 1.0
    """... until they are no later than this."""
    stalled_s: float = 15.0
    """Seconds of the clock without an answer after which the inference process is replaced.

    With the longest utterance it must fit into a leg's ring: where nothing is captured, what has
    left the ring meanwhile is lost.
    """
    loading_s: float = 120.0
    """The same for the first answer of a process, which has to load its models."""
    given_up_s: float = 60.0
    """Seconds after which a leg that has ended waits no more, if no engine answers at all."""
    max_attempts: int = 10
    """Decodes of one final that may fail or die before it is given up as empty.

    That an engine is down for everybody costs none; that it is down for this one alone does.
    """
    max_stalls: int = 5
    """Decodes of one final, alone in the process, without an answer before it is given up."""
    max_load: float = math.inf
    """Predicted share of an engine's time above which no leg is opened: see ``live_load``."""
    load_window_s: float = 8.0
    """Seconds of the clock over which that share is measured: some utterances of each leg."""
    leg_cost: float = 0.05
    """Seconds of one thread that a leg is assumed to need per second, until it was measured.

    What cannot be shed, measured with tiny.en on one thread of a two-core machine: 0.05 where
    somebody never pauses, 0.024 for each side of a conversation; base: 0.12 and 0.07. Too high, and
    the first calls after a start are refused for nothing; too low, and a burst of them is late.
    """
    leg_costs: Mapping[str, float] = field(default_factory=dict)
    """The same by engine, ``live`` or ``live_multilingual``, where it is known better."""
    remote: frozenset[str] = frozenset()
    """Engines that use no core of this machine; all others share the same cores."""
