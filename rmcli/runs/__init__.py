"""What a run folder is: the name of the next one, its metrics and its checkpoints."""
