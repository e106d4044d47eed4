"""Pictures of pages with a palette, which weigh a third: pages have few colours."""

import struct
import zlib
from base64 import b64decode, b64encode

from playwright.sync_api import Page

#: At most 256 colours, so that each other one is near to one of them; the frequent ones stay.
REDUCE = """async (picture) => {
    const answer = await fetch("data:image/png;base64," + picture);
    const { width, height } = await createImageBitmap(await answer.clone().blob());
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(await createImageBitmap(await answer.blob()), 0, 0);
    const bytes = context.getImageData(0, 0, width, height).data, counts = new Map();
    const colour = (at) => (bytes[at] << 16) | (bytes[at + 1] << 8) | bytes[at + 2];
    for (let at = 0; at < bytes.length; at += 4)
        counts.set(colour(at), (counts.get(colour(at)) ?? 0) + 1);
    const apart = (a, b) => [16, 8, 0].reduce(
        (sum, bits) => sum + (((a >> bits) & 255) - ((b >> bits) & 255)) ** 2, 0);
    const frequent = [...counts].sort((a, b) => b[1] - a[1]).map(([one]) => one);
    let palette = frequent;
    for (let near = 16; palette.length > 256; near *= 1.5) {
        palette = [];
        for (const one of frequent)
            if (palette.every((other) => apart(one, other) > near)) palette.push(one);
    }
    const places = new Map(palette.map((one, place) => [one, place]));
    const nearest = (one) => palette.reduce(
        (best, other, place) => apart(one, other) < apart(one, palette[best]) ? place : best, 0);
    let pixels = "";
    for (let at = 0; at < bytes.length; at += 4) {
        const one = colour(at);
        if (!places.has(one)) places.set(one, nearest(one));
        pixels += String.fromCharCode(places.get(one));
    }
    return { width, height, palette, pixels: btoa(pixels) };
}"""


def reduced(page: Page, picture: bytes) -> bytes:
    """A PNG as one with a palette; ``page`` is an empty one, which computes it."""
    found = page.evaluate(REDUCE, b64encode(picture).decode())
    width, pixels = found["width"], b64decode(found["pixels"])
    rows = b"".join(b"\0" + pixels[at : at + width] for at in range(0, len(pixels), width))
    colours = b"".join(one.to_bytes(3, "big") for one in found["palette"])
    header = struct.pack(">IIBBBBB", width, found["height"], 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", header),
        (b"PLTE", colours),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))
