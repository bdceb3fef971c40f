"""Text for people, without the credentials that URLs may carry."""

import re

__all__ = ["redact"]

_SECRET_WORDS = "sig|token|pass|secret|key|credential"


def redact(text: str) -> str:
    """The text with every user, password and secret query value in its URLs replaced by ***.

    Where a URL can be read in two ways, the reading that hides more is taken.
    """
    text = re.sub(r"://[^/\s]*@", "://***@", text)
    text = re.sub(r"://[^/\s@:]*:[^\s@]*@", "://***@", text)  # a password may hold a slash
    return re.sub(rf"([?&][^=&\s]*(?:{_SECRET_WORDS})[^=&\s]*=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)
