"""Speed and memory: of attention alone, and of a whole training step, with DropKey and without."""
