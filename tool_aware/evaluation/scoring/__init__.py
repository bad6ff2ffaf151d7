"""Judgement of answers, metrics with intervals, and comparisons."""
