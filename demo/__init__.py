"""The built-in model: the texts it learns from, its training, its figures. The model itself is in `demo/model`."""
