"""Processes that train together: who they are, how they meet and what they tell each other. Knows no model.

In: what a launcher gives each process. Out: this process's place among them, sums and agreements over all.
"""
