"""Flags as fields of typed dataclasses, and the parser that reads them."""
