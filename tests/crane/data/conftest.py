"""What the tests of the formats share."""

from __future__ import annotations

import re

import pytest

from crane.data import DataConfig, load_dataset


@pytest.fixture
def refused():
    """Loading a path must fail with one sentence that has all the fragments."""

    def check(path, *fragments, **settings):
        with pytest.raises(ValueError, match=re.escape(fragments[0])) as caught:
            load_dataset(DataConfig(path=str(path), **settings))
        message = str(caught.value)
        assert "\n" not in message
        for fragment in fragments:
            assert fragment in message

    return check
