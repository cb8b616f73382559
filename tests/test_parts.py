"""tests/parts.py: a missing part skips on a laptop and fails in CI."""

import pytest

from tests.parts import need


def test_missing_part_skips_with_the_reason(monkeypatch):
    monkeypatch.delenv("CI_PARTS_REQUIRED", raising=False)
    with pytest.raises(pytest.skip.Exception, match="a lathe is missing on this machine"):
        need("a lathe", False)


def test_missing_part_fails_where_parts_are_required(monkeypatch):
    monkeypatch.setenv("CI_PARTS_REQUIRED", "1")
    with pytest.raises(pytest.fail.Exception, match="a lathe is missing"):
        need("a lathe", False)


def test_present_part_lets_the_test_go_on(monkeypatch):
    monkeypatch.setenv("CI_PARTS_REQUIRED", "1")
    need("a lathe", True)
