"""`rmcli doctor`: the machine in, findings out: ok, note or fault, each with what mends it. evidence -> verdict."""
