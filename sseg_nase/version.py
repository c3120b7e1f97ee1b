"""The version, for the rooms below the package's face and for the build (pyproject.toml)."""

__version__ = "0.1.0"
