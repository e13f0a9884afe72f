"""Models in the formats of other toolkits, in and out; one module per format."""
