"""Sources of images: one file per source, each a LightningDataModule."""
