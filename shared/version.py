"""The version of this build, one place for both ends (pyproject.toml reads the same; a test compares)."""

__all__ = ["VERSION"]

VERSION = "0.2.0"
