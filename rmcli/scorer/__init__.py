"""Conversations to numbers, on one path for `score`, the evaluation inside `train`, and Python (RewardModel)."""
