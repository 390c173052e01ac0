"""Vision towers that several families share: names, shapes, metadata."""
