"""The report of a run: files in, pictures and one self-contained page out. Knows no trainer."""
