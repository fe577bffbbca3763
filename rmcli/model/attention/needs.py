"""What a value of model.attention needs of the device: known without loading a kernel."""

NEEDS_CUDA = ("varlen", "flash", "flex")
NEEDS_REDUCED = ("varlen", "flash")  # bfloat16 arithmetic
