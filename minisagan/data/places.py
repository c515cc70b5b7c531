"""Where the files of a data set may already lie."""

TORCHVISION = {  # the folders in which torchvision keeps them
    "mnist": "MNIST/raw",
    "fashion-mnist": "FashionMNIST/raw",
    "kmnist": "KMNIST/raw",
    "emnist": "EMNIST/raw",
}


def locate(where, name, files):
    """The first of `files`, names of one thing, in the folder `name`, torchvision's, or right in `where`; or None."""
    paths = (where / folder / file for folder in (name, TORCHVISION.get(name, name), "") for file in files)
    return next((path for path in paths if path.is_file()), None)
