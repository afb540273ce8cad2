"""Puts DropKey into any ``nn.Module``: find where it attends, check it against the known classes, intercept."""
