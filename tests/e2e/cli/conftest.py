from tests.support.cli import agentsrv, model_url, url

__all__ = ["agentsrv", "model_url", "url"]  # fixtures
