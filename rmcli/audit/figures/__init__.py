"""The audit's figures, one file each: flat packs in, plain values out; `gathered` makes one pass over a split."""
