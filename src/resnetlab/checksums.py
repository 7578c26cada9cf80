"""Checksums inside weights files: Keras would load a damaged one, and the network would give other results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from resnetlab.errors import ResnetlabError
from resnetlab.untrusted import check_hdf5

ATTRIBUTE = "resnetlab_sha256"


def add_checksum(path: Path) -> None:
    """Store a checksum of all arrays of an HDF5 file in the file itself; Keras ignores it."""
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs[ATTRIBUTE] = _checksum(file)


def verify_checksum(path: Path) -> None:
    """Raise ResnetlabError where the arrays of an HDF5 file are not those it was saved with, or it is not safe to read.

    Files without a checksum, of earlier versions, pass.
    """
    import h5py

    try:
        check_hdf5(path)
        with h5py.File(path, "r") as file:
            expected = file.attrs.get(ATTRIBUTE)
            damaged = expected is not None and expected != _checksum(file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # h5py's, of a damaged file
        raise ResnetlabError(f"{path} is damaged: {error}.") from None
    if damaged:
        raise ResnetlabError(
            f"{path} is damaged: its weights are not those that were saved, by their checksum. Restore it from a copy."
        )


def _checksum(file: Any) -> str:
    import h5py

    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, h5py.Dataset):
            array = value[()]
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
            digest.update(array.tobytes())

    file.visititems(add)  # in the order of names
    return digest.hexdigest()
