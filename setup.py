"""The packages are found, so that a new folder needs no line; the rest is in setup.cfg."""

from setuptools import find_packages, setup

setup(
    # The configs lie beside the package in a clone, and go along in it.
    packages=[*find_packages(include=["s3prl_varan*"]), "s3prl_varan.downstream_configs"],
    package_dir={"s3prl_varan.downstream_configs": "downstream_configs"},
)
