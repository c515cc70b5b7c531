"""What the paper does not have, and helps: packs of images for D, and images that are augmented."""
