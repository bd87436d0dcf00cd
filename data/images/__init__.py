"""Image files, packed stores and other places of images, and decoding them."""
