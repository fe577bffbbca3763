"""Figures in, one HTML file out that needs nothing else: of an audit, an evaluation, a run, or runs side by side."""
