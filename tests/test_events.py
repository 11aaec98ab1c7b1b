"""The events' contract: every type has exactly its fields."""

import pytest

from callcore.events import FIELDS, LOBBY_TYPES, make


def test_absent_fields_are_null() -> None:
    event = make("leg.ended", "17.1", leg="caller", duration=3.5)
    data = event.as_json()
    assert data == {
        "type": "leg.ended",
        "call_id": "17.1",
        "at": data["at"],
        "leg": "caller",
        "duration": 3.5,
        "reason": None,
    }
    assert data["at"].endswith("Z")


def test_a_field_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="has no field digit"):
        make("leg.ended", "17.1", digit="5")


def test_the_lobby_carries_known_types() -> None:
    assert set(FIELDS) >= LOBBY_TYPES
