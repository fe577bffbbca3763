"""TOML files, presets and options in, one checked configuration with the origin of each key out."""
