"""Packed rows on disk: token groups in, Arrow files and a manifest that proves them out, and back."""
