"""Bytes at a path or URL: files, stores, the hub, retries."""
