"""Compares finished runs: tables, and the figure of quality against diversity.

Reading order: `runs` (reading and grouping), `aggregate` (rows over seeds), `columns` (choice and direction of the
metrics), `tables`, `figure`.
"""
