"""One picture, as Pillow reads it, made what networks see: square, RGB or grey, 8 bits a channel.

It is turned as its EXIF says, laid over white where it is transparent, made RGB (or grey), cut to its middle square
or framed in black, and scaled by Lanczos. A file is what its content says, whatever its name. Damage to what is no
pixel (EXIF, text, colour profile) does no harm.
"""

import hashlib
import io
import struct
import warnings
from contextlib import nullcontext, suppress
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

with suppress(ImportError):  # who has it gets .heic, too
    import pillow_heif

    pillow_heif.register_heif_opener()

Image.init()
# Not all that Pillow knows: some formats have no mark to tell them by, others are read by calling other programs.
FORMATS = "AVIF BMP DIB GIF HEIF ICO JPEG JPEG2000 MPO PNG PPM PSD QOI SGI TIFF WEBP"
FORMATS = [name for name in FORMATS.split() if name in Image.OPEN]
MAX_PIXELS = 250_000_000  # 750 MB; a small file can claim to be huge. Ours is asked first, so Pillow's own is off:
Image.MAX_IMAGE_PIXELS = None
LARGE = 80_000_000  # pixels; above it a JPEG is decoded smaller, and only one picture is decoded at a time
NO_IMAGE = "not an image"
TURNS = dict(enumerate((
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
), start=2))  # fmt: skip
large_pictures = Lock()  # of threads; pool.py puts one of its processes here


def is_image(path):
    """Whether the file begins as an image does."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception as error:  # decoders raise whatever they like: a PNG of 10 bytes is a SyntaxError
        return not isinstance(error, UnidentifiedImageError | OSError)


def decode(path, size, fit="crop", channels=3):
    """(bytes of the image at size x size x channels, sha256 of its file), or (None, what is wrong with it)."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EXIF and the like: they name no file, and do no harm
            try:
                pixels = _pixels(file, size, fit, channels)
            except Exception:
                file.seek(0)
                if not (bare := _bare_png(file)):
                    raise
                pixels = _pixels(bare, size, fit, channels)
            file.seek(0)
            return pixels, hashlib.file_digest(file, "sha256").digest()
    except UnidentifiedImageError:
        return None, NO_IMAGE
    except Exception as error:
        return None, " ".join(str(error).split()) or type(error).__name__


def _pixels(file, size, fit, channels):
    image = Image.open(file, formats=FORMATS)
    claimed, large = f"{image.width}x{image.height}", image.width * image.height > LARGE
    with large_pictures if large else nullcontext():
        if large:  # of a JPEG: the smallest eighth, quarter or half that is no smaller than this
            image.draft(None, (2 * size, 2 * size))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{claimed} is more than {MAX_PIXELS} pixels")
        return _framed(image, size, fit, channels)


def _framed(image, size, fit, channels):
    image.load()
    with suppress(Exception):  # EXIF that can't be read says nothing
        turn = TURNS.get(image.getexif().get(0x0112))
        image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        # 16 bits, those of a PGM already stretched from its own maximum. Pillow would clip them to 8, not scale them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        low, high = image.getextrema()
        raise ValueError(f"its pixels, {low:g} to {high:g}, have no known range: save it with 8 or 16 bits a channel")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != (mode := "RGB" if channels == 3 else "L"):  # else it would be copied
        image = image.convert(mode)
    framed = {"crop": ImageOps.fit, "pad": ImageOps.pad}[fit](image, (size, size), Image.Resampling.LANCZOS)
    return framed.tobytes()


def _bare_png(file):
    """The PNG without chunks other than its pixels and their turn; None for what is no PNG."""
    kept = file.read(8)
    if kept != b"\x89PNG\r\n\x1a\n":
        return None
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        rest = file.read(length + 4)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"):
            kept += head + rest
    return io.BytesIO(kept)
