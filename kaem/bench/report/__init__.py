"""A report for people: tables, plots and a page."""
