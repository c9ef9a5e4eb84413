"""The real captions of Tux Paint's stamps, for slow tests."""

import pytest

from experiments.datasets.stamps import fetch_stamps


@pytest.fixture(scope="session")
def stamps_folder(tmp_path_factory):
    """Of the Debian package (161 MB), fetched."""
    try:
        return fetch_stamps(tmp_path_factory.mktemp("stamps"))
    except RuntimeError as error:
        pytest.skip(str(error))
