"""What is looked at before a run loads weights, one module a subject; `report` puts it together for `--check`."""
