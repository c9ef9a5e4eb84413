"""Tables and the quality–diversity figure of any number of finished runs.

Reading order: `runs` (reading and grouping), `aggregate` (rows over seeds), `columns` (choice and direction of the
metrics), `tables`, `figure`.
"""
