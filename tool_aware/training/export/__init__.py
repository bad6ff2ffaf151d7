"""The adapter and the merged model, and the check that both choose the same tools."""
