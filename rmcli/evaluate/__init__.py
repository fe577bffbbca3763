"""Scores to decisions: what a model's scores are worth on preference sets and on public suites."""
