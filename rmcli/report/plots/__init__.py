"""Numbers in, plots out: SVG that stands inside a page and takes its colours from it."""
