"""Forms as browsers send them. The API takes JSON alone; this reader is the console's own."""

from urllib.parse import parse_qsl

import falcon
from falcon.media import MultipartFormHandler

#: Bytes of a form, and fields in it.
LIMIT, FIELDS = 200_000, 1_000
ENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"


class Form:
    """The fields of a form, in their order; the same name may come more than once."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def get(self, name: str, default: str = "") -> str:
        """The last value of a field, without blanks around it."""
        found = self.all(name)
        return found[-1].strip() if found else default

    def all(self, name: str) -> list[str]:
        return [value for field, value in self._pairs if field == name]

    def secret(self, name: str) -> str:
        """A value as it was typed: passwords may begin and end with blanks."""
        return (self.all(name) or [""])[-1]

    def given(self, *names: str) -> dict[str, str]:
        """The fields of these that are filled in."""
        return {name: value for name in names if (value := self.get(name))}


def read(req: falcon.Request) -> Form:
    """The form of a request; an empty one when it has no body.

    Raises:
      falcon.HTTPError: it is no form, or a large one.
    """
    length = req.content_length or 0
    if length > LIMIT:
        raise falcon.HTTPContentTooLarge(description=f"the limit is {LIMIT} bytes")
    if not length:
        return Form([])
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        return _multipart(req)
    if kind != ENCODED:
        raise falcon.HTTPUnsupportedMediaType(description="a page sends a form")
    text = req.bounded_stream.read().decode("utf-8", "replace")
    try:
        return Form(parse_qsl(text, keep_blank_values=True, max_num_fields=FIELDS))
    except ValueError:
        raise falcon.HTTPBadRequest(description="the form has too many fields") from None


def _multipart(req: falcon.Request) -> Form:
    """A form with a file, of which the text counts and the name does not."""
    handler = MultipartFormHandler()
    pairs = []
    for part in handler.deserialize(req.bounded_stream, req.content_type, req.content_length):
        if part.name:
            data = part.stream.read()
            pairs.append((part.name, data.decode("utf-8-sig", "replace")))
    return Form(pairs)
