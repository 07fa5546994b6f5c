"""A fixed sample of bad and odd input; `python tests/fuzz_campaign.py` runs more of it."""

import pytest
from fuzz_inputs import CASES, no_hang
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SAMPLE = 40


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=SAMPLE,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_right_result_or_an_error_of_ours(name, data):
    with no_hang():
        assert CASES[name](data.draw) in ("result", "error")
