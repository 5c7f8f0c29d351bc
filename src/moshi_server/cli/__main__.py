"""``python -m moshi_server.cli`` is ``moshi-server``."""

from . import main

main()
