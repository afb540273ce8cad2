"""Data sets by name, one file per format: where their images lie and what they are labelled."""
