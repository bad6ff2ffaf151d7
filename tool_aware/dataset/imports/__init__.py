"""Data of other projects as rows: one module for each thing that they write in several ways."""
