"""Tables and the quality–diversity figure of any number of finished runs.

Reading order: `runs` (read, and put into groups), `folding` (rows, over seeds), `columns` (which metrics, and which way
is better), `tables`, `figure`.
"""
