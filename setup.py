"""Carry the folders outside the packages into the wheel, as ``callcore/_bundle``.

Everything else about the build is in setup.cfg. ``callcore.resources`` finds the folders in a
checkout and in an installed wheel.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUNDLED = ("Procfile", "migrations", "dialplan", "deploy", "samples")


class build_py_with_bundle(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # an editable install reads the checkout itself
            return
        bundle = Path(self.build_lib) / "callcore" / "_bundle"
        shutil.rmtree(bundle, ignore_errors=True)  # left by an earlier build
        bundle.mkdir(parents=True)
        root = Path(__file__).parent
        for name in BUNDLED:
            source = root / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(source, bundle / name, ignore=ignored)
            else:
                shutil.copy2(source, bundle / name)


setup(cmdclass={"build_py": build_py_with_bundle})
