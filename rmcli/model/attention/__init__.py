"""Attention over packed rows whose prompts are shared: queries, keys, values and a layout in, a row of results."""
