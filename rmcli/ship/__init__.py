"""A run's weights in, a model folder out: written aside, scored by plain transformers, put in its place."""
