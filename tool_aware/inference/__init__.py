"""The mathematics of one answer: greedy generation, scores of tool names, constrained decoding."""
