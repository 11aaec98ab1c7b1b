"""Engines of the steps: a process each, from the first use until the pool is closed."""

import pytest

from callcore.engine_pool import EnginePool
from callcore.errors import EngineError, ModelError
from callcore.inference import EngineSpec

ECHO = EngineSpec("tests.support.recognition:Echo")


def _missing() -> EngineSpec:
    raise ModelError("base", "not downloaded")


def test_a_missing_model_fails_who_needs_it_and_nobody_else() -> None:
    pool = EnginePool({"echo": lambda: ECHO, "other": _missing}, nice=0)
    try:
        with pytest.raises(ModelError, match="not downloaded"):
            pool.call("other", "same", 1)
        assert pool.call("echo", "same", 1) == 1
        assert list(pool.stream("echo", "count", 3)) == [0, 1, 2]
    finally:
        pool.close()


def test_a_closed_pool_starts_nothing_more() -> None:
    asked: list[str] = []

    def spec() -> EngineSpec:
        asked.append("echo")
        return ECHO

    pool = EnginePool({"echo": spec})
    pool.close()
    with pytest.raises(EngineError, match="ending"):
        pool.call("echo", "same", 1)
    assert asked == []
