"""Which documents are kept for validation where a corpus has no validation files."""

import hashlib

# One document in HELD_OUT_OF, unless --holdout says otherwise.
HELD_OUT_OF = 25


def is_held_out(text: str, one_in: int = HELD_OUT_OF) -> bool:
    """Whether a document belongs to validation: decided by its content, wherever it occurs. `one_in` 0: none does."""
    if one_in == 0:
        return False
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % one_in == 0
