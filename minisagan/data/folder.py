"""A folder of images: one folder a class, or images right in it, which are then the one class "all".

Every image is turned as its EXIF says, laid over white where it is transparent, made RGB (grey ones too, so a
folder always has three channels), cropped to its middle square and scaled by Lanczos.

That is done once. The pixels go into a file that later runs map into memory,

    <data folder>/folder-cache/<key>-<sha256>.npy

where the key stands for the list of files (path, size, time of change) and the image size, and the sha256 for
what was in them. Old ones can be deleted at any time. If the file cannot be written, a note says so and the
images stay in memory.
"""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minisagan.data.download import progress
from minisagan.errors import DataError

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 80_000_000  # a small file can claim to be huge; beyond 89 million Pillow warns by itself
RECIPE = 1  # raise it when the same files give other pixels: old caches are then left alone
CHUNK = 256  # images decoded between two lines of progress


def load(root, size, where):
    """(images (N, size, size, 3) uint8, labels (N,) int64, classes, hashes); DataError names bad files."""
    try:
        files, labels, classes = scan(root)
        key = _key(root, files, size)
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error})") from error
    cache, shape = where and where / "folder-cache", (len(files), size, size, 3)
    for path in cache.glob(f"{key}-*.npy") if cache else ():
        with suppress(OSError, ValueError, EOFError):  # if it is damaged: decode again
            images = np.load(path, mmap_mode="r")
            return images, labels, classes, {"images": path.stem.removeprefix(f"{key}-")}

    try:
        if not cache:
            raise OSError("there is none; $MINISAGAN_DATA names another folder")
        part = cache / f"{key}.{os.getpid()}.part"
        cache.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:  # written, not mapped: a full disk is then an error, not a crash
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                sha256 = _decode_all(root, files, size, file.write)
                file.flush()
                os.fsync(file.fileno())
            path = cache / f"{key}-{sha256}.npy"
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        images = np.load(path, mmap_mode="r")
    except OSError as error:
        print(f"note: no cache in {cache or 'the home folder'} ({error}): the images stay in memory", file=sys.stderr)
        pixels = bytearray()
        sha256 = _decode_all(root, files, size, pixels.extend)
        images = np.frombuffer(pixels, np.uint8).reshape(shape)
    return images, labels, classes, {"images": sha256}


def scan(root):
    """The images under `root` in order: (paths relative to it, labels (N,) int64, class names).

    Hidden files and those without an image's extension are passed over; a folder without images is no class.
    """
    loose, found = [], {}
    for name in sorted(name for name in os.listdir(root) if not name.startswith(".")):
        if (root / name).is_dir():
            if files := _below(root, name):
                found[name] = files
        elif _is_image(name):
            loose.append(name)
    if loose and found:
        raise DataError(f"{root}: images both in it and in its folders; move the ones or the others away")
    if loose:
        found = {"all": loose}
    if not found:
        raise DataError(f"{root}: no images in it or in its folders; known are {' '.join(EXTENSIONS)}")
    files = [file for name in found for file in found[name]]
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
    return files, labels, tuple(found)


def _below(root, name):
    files = []
    for folder, folders, names in os.walk(root / name, onerror=_raise):
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        here = os.path.relpath(folder, root)
        files += [os.path.join(here, file) for file in sorted(names) if _is_image(file)]
    return files


def _is_image(name):
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _raise(error):
    raise error


def _key(root, files, size):
    digest = hashlib.sha256(f"{RECIPE} {size} ".encode() + os.fsencode(root.resolve()))
    for file in files:
        stat = os.stat(root / file)
        digest.update(b"\0" + os.fsencode(file) + f"\0{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _decode_all(root, files, size, write):
    """Hand the pixels of every file to `write`, in order; the sha256 of the files' names and contents."""
    digest, bad = hashlib.sha256(), []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            decoded = pool.map(lambda file: _decode(root / file, size), chunk)
            for file, (pixels, content) in zip(chunk, decoded, strict=True):
                if pixels is None:
                    bad.append(f"{file} ({content})")
                elif not bad:
                    write(pixels)
                    digest.update(os.fsencode(file) + b"\0" + content)
            progress(f"reading {root}", min(start + CHUNK, len(files)), len(files))
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(
            f"{root}: {len(bad)} of {len(files)} images cannot be read: {', '.join(bad[:5])}{more}; "
            "repair them or take them away"
        )
    return digest.hexdigest()


def _decode(path, size):
    """(RGB bytes of the image at `size` x `size`, sha256 of its file), or (None, what is wrong with it)."""
    try:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
            file.seek(0)
            image = Image.open(file)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # Pillow would clip 16 bits to 8, not scale them
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode} have no known range")
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
            return image.tobytes(), content
    except UnidentifiedImageError:
        return None, "not an image"
    except Exception as error:  # decoders raise whatever they like: a PNG of 10 bytes is a SyntaxError
        return None, str(error) or type(error).__name__
