"""How many small faults the tests find: see ``__main__``."""
