"""Public suites by their own rules: rows of a suite in, its figures and its table out, and what was missing of it."""
