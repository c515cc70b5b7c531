"""What the paper does not have: packs of images for D (PacGAN), and augmented images, for small data sets."""
