"""`python -m moshi_server` is the `moshi-server` command."""

from .cli import main

if __name__ == "__main__":
    main()
