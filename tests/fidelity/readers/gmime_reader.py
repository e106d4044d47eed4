"""Reads file names, one a line, and answers each with what GMime finds in the file.

Runs with the system's Python, to which Debian's bindings belong.
"""

import hashlib
import json
import sys
from pathlib import Path

import gi

gi.require_version("GMime", "3.0")
from gi.repository import GMime  # noqa: E402

GMime.init()


def decoded(part):
    content = part.get_content()
    return written(content.write_to_stream) if content else b""


def written(write, *arguments):
    stream = GMime.StreamMem.new()
    write(*arguments, stream)
    array = stream.get_byte_array()
    return bytes(array) if array else b""


def leaves(node):
    if isinstance(node, GMime.Multipart):
        for index in range(node.get_count()):
            yield from leaves(node.get_part(index))
    elif node is not None:
        yield node


def people(addresses):
    for index in range(addresses.length() if addresses else 0):
        one = addresses.get_address(index)
        if isinstance(one, GMime.InternetAddressGroup):
            yield from people(one.get_members())
        else:
            yield [one.get_name() or "", one.get_addr() or ""]


def text(part):
    data = decoded(part)
    charset = part.get_content_type_parameter("charset") or "utf-8"
    for name in (charset, "utf-8", "windows-1252"):
        try:
            return data.decode(name)
        except (LookupError, ValueError):
            continue
    return data.decode("latin-1")


def read(path):
    stream = GMime.StreamMem.new_with_buffer(Path(path).read_bytes())
    mail = GMime.Parser.new_with_stream(stream).construct_message(None)
    bodies, files = {"text/plain": [], "text/html": []}, []
    for part in leaves(mail.get_mime_part()):
        kind = part.get_content_type()
        kind = f"{kind.get_media_type()}/{kind.get_media_subtype() or ''}".lower() if kind else ""
        if kind.startswith("/") or kind.endswith("/"):
            kind = "text/plain"  # RFC 2045 5.2
        shown = part.get_disposition() or ""
        if not isinstance(part, GMime.Part):
            nested = part.get_message() if isinstance(part, GMime.MessagePart) else None
            data = written(nested.write_to_stream, None) if nested else b""
            name = part.get_content_type_parameter("name") or ""
            name = part.get_content_disposition_parameter("filename") or name
            files.append({"name": name, "sha256": hashlib.sha256(data).hexdigest()})
        elif kind in bodies and shown.lower() != "attachment":
            bodies[kind].append(text(part))
        else:
            digest = hashlib.sha256(decoded(part)).hexdigest()
            files.append({"name": part.get_filename() or "", "sha256": digest})
    date = mail.get_date()
    return {
        "path": path,
        "subject": mail.get_subject() or "",
        "from": list(people(mail.get_from())),
        "to": list(people(mail.get_to())),
        "date": date.to_unix() if date else None,
        "text": "\n".join(bodies["text/plain"]),
        "html": "\n".join(bodies["text/html"]),
        "attachments": files,
    }


for line in sys.stdin:
    name = line.rstrip("\n")
    try:
        found = read(name)
    except Exception as error:
        found = {"path": name, "error": repr(error)}
    print(json.dumps(found), flush=True)
