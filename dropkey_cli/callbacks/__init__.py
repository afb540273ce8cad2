"""What watches or records a run: drop ratios, predictions, progress, the plan."""
