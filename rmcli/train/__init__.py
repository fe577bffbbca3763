"""`rmcli train`: prepared rows and a backbone in, a run folder out. job -> plan -> feed -> loop -> evaluate."""
