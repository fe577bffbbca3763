"""One file per shape on the wire: what it reads of a request, what it answers. Scores are the same in all of them."""
