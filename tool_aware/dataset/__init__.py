"""Stage 1: the query log and synthesis become data/train.json, val.json and test.json."""
