"""InternLM2's own checkpoint layout in, transformers' Llama and a fast tokenizer out. No remote code is run."""
