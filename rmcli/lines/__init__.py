"""Rows to lines: what is to be scored of each, by its columns or a map function; and lines shared among processes."""
