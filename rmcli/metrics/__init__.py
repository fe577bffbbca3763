"""What scores are worth: figures of scored answers and of comparisons among them. Arrays in, plain numbers out."""
