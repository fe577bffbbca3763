"""Files, URLs, Hub data sets and stdin in, raw rows and preference groups out."""
