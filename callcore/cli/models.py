"""``callcore models``: models of the manifest and of hubs, and Argos translation packages."""

from collections.abc import Sequence

from callcore import argos_packages, model_store
from callcore.settings import Settings

_STORE = {
    "list": model_store.run_list,
    "pull": model_store.run_pull,
    "verify": model_store.run_verify,
}
_PACKAGES = {
    "list": argos_packages.run_list,
    "pull": argos_packages.run_pull,
    "verify": argos_packages.run_verify,
}


def run(settings: Settings, action: str, names: Sequence[str]) -> int:
    """List, pull or verify; without names the models that the settings use and all packages."""
    pairs = [name for name in names if argos_packages.is_package(name)]
    others = [name for name in names if name not in pairs]
    failed = 0
    if others or not names:
        failed = _STORE[action](settings, others)
    if pairs or (not names and action != "pull"):
        failed = _PACKAGES[action](settings, pairs) or failed
    return failed
