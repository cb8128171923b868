"""Packages: one installed name, `vlmopt`; three of its packages lie in folders beside it. The rest: pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("pruning", "attention_fix", "apps")

setup(
    packages=[
        *find_packages(include=["vlmopt", "vlmopt.*"]),
        *(f"vlmopt.{name}" for folder in FOLDERS for name in find_packages(include=[folder, f"{folder}.*"])),
    ],
    package_dir={f"vlmopt.{folder}": folder for folder in FOLDERS},
)
