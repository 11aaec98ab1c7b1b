"""Where the folders that are no Python packages lie: migrations, dialplan, deploy, samples, ...

In a checkout they are at its top; setup.py puts them into a wheel as ``callcore/_bundle``.
"""

from pathlib import Path

from callcore.errors import CallcoreError

_PACKAGE = Path(__file__).parent


def path(name: str) -> Path:
    """Return the file or folder ``name``, e.g. ``migrations``.

    Raises:
        CallcoreError: If this installation does not have it.
    """
    bundle = _PACKAGE / "_bundle"
    found = (bundle if bundle.is_dir() else _PACKAGE.parent) / name
    if not found.exists():
        raise CallcoreError(f"{found} is missing: install callcore again")
    return found
