"""Fixtures of verification's tests."""

from tests.convert.conftest import golden

__all__ = ["golden"]
