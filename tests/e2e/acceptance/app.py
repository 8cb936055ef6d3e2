"""What the server of acceptance tests serves."""

from tests.support.talk import make_app

app = make_app()
