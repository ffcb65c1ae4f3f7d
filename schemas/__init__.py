"""The rows and the job's settings: what travels between stages, and nothing that does any work."""
