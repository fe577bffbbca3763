"""`rmcli inspect-token`: a tokenizer and model files in, the id for the reward token out. evidence -> verdict."""
