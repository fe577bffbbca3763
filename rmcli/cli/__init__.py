"""The command line, one file per command: arguments in; a call, the answer on stdout and the next command out."""
