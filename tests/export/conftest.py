"""What all tests of this folder share."""

from tests.threads import one_thread  # noqa: F401 (a fixture)
