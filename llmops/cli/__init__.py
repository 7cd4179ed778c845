"""The `llmops` command: `commands` has all of them, `__main__` begins and ends each."""
