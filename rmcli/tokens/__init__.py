"""Preference groups in, token groups out: the tokenizer, its chat template, the reward token, truncation."""
