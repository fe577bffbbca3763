"""What is known of a run in, README.md out: the model card, with nothing in it that nobody has measured or said."""
