"""A model folder behind HTTP: requests in, scores out, in the shapes that training frameworks send and expect."""
