"""Sources of pictures: one file per source, each a LightningDataModule."""
