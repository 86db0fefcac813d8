"""`python -m tower_server` is `tower-server`."""

from tower_server.cli import main

main()
