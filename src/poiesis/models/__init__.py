"""The models: base classes, capabilities, then one folder per family and one file per model."""
