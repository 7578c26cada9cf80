"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("resnetlab")
except PackageNotFoundError:  # a checkout on the path that is not installed
    VERSION = "0+unknown"
