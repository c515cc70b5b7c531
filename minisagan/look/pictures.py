"""Pictures made of images: grids of samples, their film, attention as heat.

Pictures are uint8 arrays (H, W, C), C = 1 (grey) or 3, until `write_png` or `write_gif` puts them on disk.
What is marked has the colours of Okabe and Ito (2008), which colour-blind readers tell apart; heat has viridis
(Smith and van der Walt, 2015), which rises evenly in lightness.
"""

import base64
import contextlib
import io
import os
import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from minisagan.errors import DataError, UsageError
from minisagan.files import replacing
from minisagan.stderr import note, visible

SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
HEAT = np.array([list(bytes.fromhex(colour)) for colour in VIRIDIS], float)  # (9, 3), evenly spaced
GREYS = ((np.arange(256) + 8) // 17 * 17).astype(np.uint8)  # the nearest of 16 levels from 0 to 255
GAP, GAP_GREY = 2, 128  # pixels between the images of a grid, and their value
LINE, SMALL = 18, 12  # pixels: a line of text above or below an image, and its letters
FRAMES, COLOURS = 40, 64  # of a film: the most that it gets, if not asked for more
WIDEST, LARGEST = 704, 10 << 20  # of a film: pixels of its longer side, bytes
INK = "#333333"  # of letters
_font = lru_cache(ImageFont.load_default)  # by size in pixels
FONTS = (  # taken first, where a system has them; the font that comes with Pillow lacks nearly all beyond ASCII
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf"),
    *("Arial Unicode.ttf", "arial.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "PingFang.ttc"),
)
FONT_FOLDERS = (
    *("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts"),
    *("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts", "C:/Windows/Fonts"),
)
NO_LETTER = "\U0010ffff"  # what fonts draw in place of it, they draw for all that they lack


def grid(images, columns, scale=None, names=None, heads=None, captions=None):
    """Images uint8 (N, H, W, C) in rows of `columns`, as one picture (H', W', C) with grey gaps of 2 pixels.

    Each pixel becomes `scale` x `scale` pixels; by default just so many that an image is 56 or more wide.
    `names`, one for each row, are written to the left of the rows; `heads`, one for each column, above the columns;
    `captions`, one for each image, below the images. UsageError for 0 images, columns or scale.
    """
    n, h, w, c = _checked(images, 4).shape
    scale = max(1, -(-56 // w)) if scale is None else scale
    if min(n, columns, scale) < 1:
        raise UsageError(f"a grid of {n} images, {columns} columns, scale {scale}: each must be 1 or more")
    columns, rows = min(columns, n), -(-n // columns)
    images, w = images.repeat(scale, 1).repeat(scale, 2), w * scale + GAP
    if captions is not None:
        below = [strip(LINE, w - GAP, c, SMALL, "mm", [(w / 2 - 1, LINE / 2, text)]) for text in captions]
        images = np.concatenate([images, below], axis=1)
    h = images.shape[1] + GAP
    cells = np.full((rows * columns, h, w, c), GAP_GREY, np.uint8)
    cells[:n, :-GAP, :-GAP] = images
    cells = cells.reshape(rows, columns, h, w, c).swapaxes(1, 2)  # (rows, h, columns, w, C)
    sheet = cells.reshape(rows * h, columns * w, c)[:-GAP, :-GAP]
    if names is not None:
        size = max(9, min(18, h * 2 // 3))
        width = 16 + max(length(name, size) for name in names)
        places = [(width - 8, k * h + (h - GAP) / 2, name) for k, name in zip(range(rows), names, strict=True)]
        sheet = np.concatenate([strip(len(sheet), width, c, size, "rm", places), sheet], axis=1)
    if heads is not None:
        left = sheet.shape[1] - columns * w + GAP
        places = [(left + k * w + w / 2 - 1, LINE / 2, head) for k, head in zip(range(columns), heads, strict=True)]
        sheet = np.concatenate([strip(LINE, sheet.shape[1], c, SMALL, "mm", places), sheet])
    return sheet


def write_png(path, image):
    """Writes uint8 (H, W, C), all or nothing; Fault if the folder is absent or read-only, or has no space."""
    with replacing(path) as temp:
        temp.write_bytes(png(image))


def read_png(path):
    """What `write_png` wrote there, uint8 (H, W, C); DataError if it is missing or damaged."""
    try:
        return np.atleast_3d(iio.imread(Path(path).read_bytes(), plugin="pillow", extension=".png"))
    except Exception as error:  # decoders raise all kinds
        raise DataError(f"{path}: not a picture that can be read: {error}") from error


def write_gif(path, frames, milliseconds, last=None, captions=None, most=FRAMES):
    """Writes frames uint8 (H, W, C), all of one C, as a film that never ends; Fault as in `write_png`.

    A frame may be the path of a picture, too: it is read and scaled down before the next one is, and left out, with a
    note on stderr, if it is damaged. Of more than `most` so many are kept, first and last among them; smaller
    ones stand at the lower right of a frame of the largest's size. Each is shown for `milliseconds` (a GIF has tens),
    the last one for `last`; equal neighbours become one. `captions`, one text for each frame, are written below. To
    keep the file small there are 16 greys, or 64 colours chosen for the whole film; no side is longer than WIDEST; and
    all frames are scaled down until the file has LARGEST bytes at most. Without any frame no file is written.
    """
    kept = np.linspace(0, len(frames) - 1, min(len(frames), most)).astype(int)
    frames = {k: _shrunk(x, WIDEST) for k, x in ((k, _read(frames[k])) for k in kept) if x is not None}
    if not frames:
        return
    captions = captions and [_shortened(captions[k], 16, WIDEST - 16) for k in frames]
    frames = _of_one_shape(list(frames.values()))
    durations = [milliseconds] * (len(frames) - 1) + [milliseconds if last is None else last]
    while len(film := _film(frames, captions, durations)) > LARGEST and (side := max(frames[0].shape)) > 8:
        side = int(side * max(0.3, 0.95 * (LARGEST / len(film)) ** 0.5))
        for k, x in enumerate(frames):  # one by one: each large one goes when its small one is there
            frames[k] = _shrunk(x, side)
    with replacing(path) as temp:
        temp.write_bytes(film)


def _read(frame):
    """A frame's pixels, or None if it is the path of a picture that can't be read."""
    try:
        return _checked(frame if isinstance(frame, np.ndarray) else read_png(frame), 3)
    except DataError as error:
        note(f"not in the film: {error}")
        return None


def _of_one_shape(frames):
    """Frames (H, W, C) of one shape: names of classes, at the left, take what room the fonts of a machine ask for."""
    if len({x.shape for x in frames}) < 2:
        return frames
    height, width = (max(x.shape[axis] for x in frames) for axis in (0, 1))
    room = [((height - len(x), 0), (width - x.shape[1], 0), (0, 0)) for x in frames]
    return [np.pad(x, pad, constant_values=GAP_GREY) for x, pad in zip(frames, room, strict=True)]


def _shrunk(x, side):
    """A picture (H, W, C), scaled down until neither side is above `side` pixels."""
    h, w, c = x.shape
    if max(h, w) <= side:
        return x
    size = [max(1, n * side // max(h, w)) for n in (w, h)]
    return np.asarray(_image(x).resize(size, Image.Resampling.LANCZOS, reducing_gap=1.5)).reshape(*size[::-1], c)


def _film(frames, captions, durations):
    """The bytes of a GIF."""
    palette = _palette(frames)
    images = (_indexed(x, palette, captions and (captions[k], captions)) for k, x in enumerate(frames))
    file, first = io.BytesIO(), next(images)
    durations = durations if len(durations) > 1 else durations[0]  # as Pillow wants it
    first.save(file, "GIF", save_all=True, append_images=images, duration=durations, loop=0)
    return file.getvalue()


def _checked(x, ndim):
    if x.dtype != np.uint8 or x.ndim != ndim or x.shape[-1] not in (1, 3):
        raise ValueError(f"{x.dtype} {x.shape} is not uint8 ({'N, ' * (ndim - 3)}H, W, C) with C = 1 or 3")
    return x


def png(image):
    """The bytes of a PNG file of uint8 (H, W, C)."""
    x = _checked(image, 3)
    return iio.imwrite("<bytes>", x[..., 0] if x.shape[-1] == 1 else x, plugin="pillow", extension=".png")


def uri(data, kind):
    """The bytes of a file of this kind ("png", "gif") as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _image(x):
    """uint8 (H, W, C) as Pillow wants its greys and colours."""
    return Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)


def _palette(frames):
    """Colours for frames like these (H, W, C): uint8 (K, 3), the 16 greys of GREYS last; greys need no others."""
    greys = np.unique(GREYS)[:, None].repeat(3, 1)
    if frames[0].shape[-1] == 1:
        return greys
    at = np.linspace(0, frames[0].size // 3 - 1, -(-20_000 // len(frames))).astype(int)
    sample = np.concatenate([x.reshape(-1, 3)[at] for x in frames])
    few = Image.fromarray(sample[None]).quantize(COLOURS, kmeans=1).getpalette("RGB")
    return np.concatenate([np.array(few, np.uint8).reshape(-1, 3)[:COLOURS], greys])


def _indexed(x, palette, caption=None):
    """x (H, W, C) in these colours, as an image of Pillow's, with a white strip below for a caption of several."""
    offset = len(palette) - 16  # of the greys
    if x.shape[-1] == 1:
        x = GREYS[x[..., 0]] // 17
    else:
        colours = Image.new("P", (1, 1))
        colours.putpalette(palette[:offset].tobytes())
        x = np.asarray(_image(x).quantize(palette=colours, dither=Image.Dither.NONE))  # (H, W)
    if caption:
        text, all_of_them = caption
        width = max(x.shape[1], 16 + max(length(each, 16) for each in all_of_them))  # of all frames
        x = np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=offset + 15)
        below = GREYS[strip(28, width, 1, 16, "lm", [(8, 14, text)])[..., 0]] // 17
        x = np.concatenate([x, below + np.uint8(offset)])
    image = Image.fromarray(x)
    image.putpalette(palette.tobytes())
    return image


def _shortened(text, size, width):
    """The text, with ... for its middle where it is longer than so many pixels."""
    ends = (f"{text[:k]}...{text[-k:]}" for k in range(len(text) // 2, 0, -1))
    return text if length(text, size) <= width else next((x for x in ends if length(x, size) <= width), "...")


def length(text, size):
    text, font = letters(text, size)
    return int(np.ceil(font.getlength(text)))


def draw_text(pen, x, y, text, size, anchor):
    text, font = letters(text, size)
    pen.text((x, y), text, INK, font, anchor)


@lru_cache(4096)
def letters(text, size):
    """(text, font): the text as it can be drawn, in a font that has all of it.

    Where none is found, the letters' numbers stand for them (\\u4e2d), as they do for line breaks and the like.
    """
    text = visible(unicodedata.normalize("NFC", text))
    if not text.isascii() and (file := _font_with(frozenset(text))):
        return text, _truetype(file, size)
    return text.encode("ascii", "backslashreplace").decode(), _font(size)


def legible(names):
    """What is drawn for classes {number: name}: {number: name}, or "#number" where no font found has all letters.

    And where two look alike, as letters of two alphabets may. Says on stderr which these are.
    """
    return dict(_legible(tuple(names.items())))


@lru_cache(64)
def _legible(names):
    looks, lacks = {}, set()
    for k, name in names:
        text, font = letters(name, 16)
        if text.isascii() and not all(each.isascii() for _, each in names) and (file := _font_with(frozenset(text))):
            font = _truetype(file, 16)  # that of the others: nothing else tells a Latin A from a Cyrillic one
        looks[k] = bytes(font.getmask(text)), font.getlength(text)
        if text != unicodedata.normalize("NFC", name):
            lacks.add(k)
    times = Counter(looks.values())
    unclear = {k: name for k, name in names if k in lacks or times[looks[k]] > 1}
    mark = "#"
    while any(name.startswith(mark) for _, name in names):
        mark += "#"
    if unclear:
        some = [f"{mark}{k} for {name}" for k, name in unclear.items()]
        some = ", ".join(some[:20]) + (f" and {len(some) - 20} more" if len(some) > 20 else "")
        note(f"the pictures say {some}: no font found here shows these names, or tells them apart")
    return [(k, f"{mark}{k}" if k in unclear else name) for k, name in names]


@lru_cache(4096)
def _font_with(text):
    """The font file that has all letters of the set `text`, or None."""
    for file in _font_files():
        with contextlib.suppress(OSError):  # no font, or one that is damaged
            font = _truetype(file, 16)
            if all(letter.isascii() or _has(font, letter) for letter in text):
                return file
    return None


@lru_cache
def _font_files():
    found = {}
    for folder in FONT_FOLDERS:
        for path, _, files in os.walk(os.path.expanduser(folder)):
            found |= {name: os.path.join(path, name) for name in sorted(files)}
    fonts = [*FONTS, *sorted(name for name in found if name.lower().endswith((".ttf", ".otf", ".ttc")))]
    return [found[name] for name in dict.fromkeys(fonts) if name in found]


_truetype = lru_cache(64)(ImageFont.truetype)


def _has(font, letter):
    if "\ud800" <= letter <= "\udfff":  # half a letter, of a file name that is no UTF-8
        return False
    return bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))


def strip(height, width, channels, size, anchor, places):
    """White, (height, width, channels), with the text of each (x, y, text)."""
    image = Image.new("RGB", (width, height), "white")
    for x, y, text in places:
        draw_text(ImageDraw.Draw(image), x, y, text, size, anchor)
    return np.asarray(image)[..., :channels]


def colormap(values):
    """Viridis: values in [0, 1], of any shape, to uint8 (..., 3), dark blue to yellow; beyond, the ends."""
    at = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, at, channel) + 0.5 for channel in HEAT.T], -1).astype(np.uint8)


def overlay(image, heat, alpha=0.6):
    """`heat`, floats (h, w) in [0, 1], stretched over uint8 (H, W, C) as colour of opacity `alpha`."""
    heat = Image.fromarray(heat.astype(np.float32)).resize(_checked(image, 3).shape[1::-1], Image.BILINEAR)
    return ((1 - alpha) * image + alpha * colormap(np.asarray(heat)) + 0.5).astype(np.uint8)  # (H, W, 3)


def dot(image, y, x, colour, radius=4):
    """uint8 (H, W, C) with a disc "#rrggbb" around (y, x), in pixels from the corner, in a white and a dark ring."""
    height, width = _checked(image, 3).shape[:2]
    distance = np.hypot(np.arange(height)[:, None] + 0.5 - y, np.arange(width) + 0.5 - x)  # (H, W)
    for r, tint in ((radius + 2.5, INK), (radius + 1.5, "#FFFFFF"), (radius, colour)):
        cover = np.clip(r + 0.5 - distance, 0, 1)[..., None]
        image = (1 - cover) * image + cover * ImageColor.getrgb(tint)
    return (image + 0.5).astype(np.uint8)  # (H, W, 3)


def framed(image, colour, width=3):
    """uint8 (H, W, 3) with its outermost `width` pixels painted "#rrggbb"."""
    painted = np.empty_like(_checked(image, 3))
    painted[...] = ImageColor.getrgb(colour)
    inside = slice(width, -width)
    painted[inside, inside] = image[inside, inside]
    return painted


def noted(image, lines):
    """uint8 (H, W, C) with lines of text below it, on white, widened if they need it."""
    h, w, c = _checked(image, 3).shape
    width = max(w, 16 + max(length(line, SMALL) for line in lines))
    image = np.pad(image, ((0, 0), (0, width - w), (0, 0)), constant_values=255)
    places = [(8, (k + 0.5) * LINE, line) for k, line in enumerate(lines)]
    return np.concatenate([image, strip(LINE * len(lines), width, c, SMALL, "lm", places)])
