"""Does DropKey help, with which ratio, schedule and structure: the same recipe over a grid, and what is seen by chance."""
