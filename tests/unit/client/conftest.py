from tests.support.clients import hasty, nothing_left_running

__all__ = ["hasty", "nothing_left_running"]  # fixtures
