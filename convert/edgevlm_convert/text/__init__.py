"""One file per text architecture: tensor names, shapes, metadata."""
