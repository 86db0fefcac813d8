"""`python -m tower_agent` is `tower-agent`."""

from tower_agent.cli import main

main()
