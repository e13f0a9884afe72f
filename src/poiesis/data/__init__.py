"""Data: sources (where files are), codecs (raw to tensor and back), views, loaders."""
