"""`rmcli score`: a model folder and conversations in, their scores out, line by line."""
