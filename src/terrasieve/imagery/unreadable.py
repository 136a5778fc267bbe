"""UnreadableImage: why a file's pixels cannot be had, with a code that the index and the loader count by.

Raised by ``tiff``, ``headers`` and ``raster``; caught by ``curate.scan`` (a row with a reason) and by the loader (a
counted replacement).
"""

from __future__ import annotations

from typing import Literal, get_args

from terrasieve.errors import UserError

Code = Literal[
    "missing",  # no such file
    "permission_denied",
    "empty",  # zero bytes
    "not_an_image",  # none of the formats that are read
    "zero_band",
    "huge_header",  # declares more pixels than allowed, or than a file of its size can hold
    "truncated",
    "unreadable",  # an image, but its decoder refuses it
    "bad_window",  # the window reaches outside the image
    "missing_band",
    "other_bands",  # not as many as the catalog says
    "no_data",  # not one real pixel
    "changed",  # not the file that was listed
    "damaged_shard",  # the tar that holds the image was cut off or altered
]
CODES: tuple[Code, ...] = get_args(Code)


class UnreadableImage(UserError):
    """An image, or a part of it, that cannot be read.

    Attributes:
        uri: path or URL of the file.
        code: one of ``CODES``.
        reason: the code and its detail, "truncated: ...", as a manifest row keeps it.
    """

    def __init__(self, uri: str, code: Code, detail: str) -> None:
        super().__init__(f"{uri}: {code}: {detail}")
        self.uri = uri
        self.code: Code = code
        self.detail = detail

    @property
    def reason(self) -> str:
        return f"{self.code}: {self.detail}"

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, Code, str]]:
        # Exceptions pickle their message alone; this one has to cross from a worker process.
        return type(self), (self.uri, self.code, self.detail)
