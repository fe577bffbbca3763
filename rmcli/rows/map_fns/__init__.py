"""Map functions: a raw row in, a preference group out; `known` has those with names, `apply` checks the result."""
