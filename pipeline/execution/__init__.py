"""Ray Data and what surrounds it: work units, quarantine, progress, signals."""
