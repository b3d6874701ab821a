"""What a pass computes: FLOPs, counted from the operations that really run."""
