"""A workspace's upkeep: made new, swept of what nothing names, kept in one file and brought back from it."""
