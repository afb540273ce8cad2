"""What a network is trained for: loss, metrics and optimizer, one LightningModule per file."""
