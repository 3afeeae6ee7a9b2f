"""Packages that are there only where an extra of this package was asked for."""

from importlib.util import find_spec

from emoprobe.errors import InputError


def check_extra(extra: str, wanting: str, *packages: str) -> None:
    """Raise `InputError` for the first of an extra's packages that is not installed; none is imported."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f'{wanting} {package}, which is not installed: pip install "emoprobe[{extra}]"')


def check_ray() -> None:
    """Raise `InputError` where Ray, which workers need, is not installed."""
    check_extra("ray", "workers need", "ray")


def check_explorer() -> None:
    """Raise `InputError` where what the explorer's server needs is not installed."""
    check_extra("explore", "the explorer needs", "fastapi", "uvicorn")
