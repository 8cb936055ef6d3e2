"""What the server of acceptance tests serves."""

from tests.server.talk import make_app

app = make_app()
