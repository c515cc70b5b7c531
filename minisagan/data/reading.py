"""The choices in reading a folder of images."""

from dataclasses import dataclass

from minisagan.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """How a folder of images is read.

    fit              "crop" to the middle square, or "pad" with black to a square
    channels         3 (RGB), 1 (grey), or None for what is usual: 3 in a folder of images
    labels           a CSV or JSON file with the classes, or None: folders are classes
    skip_unreadable  go on without damaged images
    strict           refuse a folder that holds anything else than images
    """

    fit: str = "crop"
    channels: int | None = None
    labels: str | None = None
    skip_unreadable: bool = False
    strict: bool = False

    def __post_init__(self):
        if self.fit not in ("crop", "pad"):
            raise UsageError(f"fit must be crop or pad, not {self.fit!r}")
        if self.strict and self.skip_unreadable:
            raise UsageError("--strict refuses what --skip-unreadable leaves out: choose one of them")
