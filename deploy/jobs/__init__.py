"""Job entry points: every command as `python -m deploy.jobs.<name>`."""
