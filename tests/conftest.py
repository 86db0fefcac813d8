"""What all tests share: the real control planes (tests/testbed/fixtures.py)."""

pytest_plugins = ["tests.testbed.fixtures"]
