"""Evaluation: suites, metrics, runs through an endpoint, reports, and the gate that decides."""
