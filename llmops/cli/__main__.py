"""`python -m llmops.cli`, for children that must run the same interpreter."""

from llmops.cli import main

main()
