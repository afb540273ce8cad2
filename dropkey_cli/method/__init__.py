"""DropKey as mathematics: settings, schedule, mask and attention. Knows torch only."""
