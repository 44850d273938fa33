"""Which documents are kept for validation where a corpus has no validation files."""

import hashlib

import numpy as np

# One document in HELD_OUT_OF, unless --holdout says otherwise.
HELD_OUT_OF = 25


# A text, or the ids that a tokenizer made of it, uint32.
Document = str | np.ndarray


def is_held_out(text: Document, one_in: int = HELD_OUT_OF) -> bool:
    """Whether a document belongs to validation: decided by its content, wherever it occurs. `one_in` 0: none does."""
    if one_in == 0:
        return False
    content = text.encode() if isinstance(text, str) else text.tobytes()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little") % one_in == 0
