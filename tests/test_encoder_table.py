"""The table of `docs/encoders.md`: what the embedding of each family is, padded or not, saved and loaded."""

from __future__ import annotations

import encoder_families


def test_the_table_of_encoders_is_what_they_do():
    """`python tests/encoder_families.py` writes it."""
    found = encoder_families.table()
    assert "CHANGES" not in found
    assert "?" not in found
    page = encoder_families.PAGE.read_text(encoding="utf-8")
    assert found in page
