"""`rmcli audit`: a prepared folder in, what to know before training out. figures -> findings -> screen, page."""
