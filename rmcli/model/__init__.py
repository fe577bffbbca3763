"""The reward model: token groups in as a batch, scores, gradients and a model folder out."""
