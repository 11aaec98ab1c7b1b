"""Who is heard where: nobody's words may be lost for want of a file."""

import pytest

from callcore.calls import Media
from callcore.steps.transcribe import tracks


@pytest.mark.parametrize(
    ("roles", "heard"),
    [
        ("mixed", "mixed:mixed"),
        ("stereo", "stereo:caller stereo:agent"),
        ("mixed caller agent", "caller:caller agent:agent"),
        ("stereo caller agent", "caller:caller agent:agent"),
        ("caller agent agent-2", "caller:caller agent:agent agent-2:agent-2"),
        ("caller caller.2 agent", "caller:caller caller.2:caller agent:agent"),
        ("caller", "caller:caller"),
        # The other side has no file of its own that can be read.
        ("mixed caller", "mixed:mixed"),
        ("mixed agent agent-2", "mixed:mixed"),
        ("stereo agent", "stereo:caller stereo:agent"),
        # A second stream that nobody registered.
        ("mixed mixed.2", "mixed:mixed mixed.2:mixed"),
    ],
)
def test_whoever_spoke_is_heard_once(roles: str, heard: str) -> None:
    found = tracks(tuple(Media(role, f"/{role}.wav") for role in roles.split()))
    assert " ".join(f"{each.media.role}:{each.leg}" for each in found) == heard
