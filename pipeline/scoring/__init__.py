"""Scores of answers against references: functions of text, a file a metric, equal to the code that each names."""
