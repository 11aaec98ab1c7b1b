from pathlib import Path

import pytest

from callcore import resources
from callcore.errors import CallcoreError

CLONE = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["Procfile", "migrations", "dialplan", "deploy", "samples"])
def test_a_checkout_reads_its_own_folders(name: str) -> None:
    assert resources.path(name) == CLONE / name


def test_a_wheel_reads_its_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_bundle" / "migrations").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path)
    assert resources.path("migrations") == tmp_path / "_bundle" / "migrations"


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(CallcoreError, match="nothing is missing: install callcore again"):
        resources.path("nothing")
